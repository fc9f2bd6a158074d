"""What a cache takes of a disk, and whether it has that much."""

import shutil
from pathlib import Path

from pixio_robot.errors import CacheError


def check_disk(path: Path, nbytes: int, *, cure: str) -> None:
    """Refuse a build that the disk cannot hold.

    Args:
        path: The cache, begun or not.
        nbytes: Its size when whole.
        cure: What the user may do.

    Raises:
        CacheError: If less than what is not written yet is free.
    """
    left, free = nbytes - size_on_disk(path), free_space(path)
    if left > free:
        raise CacheError(f"{path} needs {readable(left)}, and its disk has {readable(free)} free: {cure}.")


def free_space(path: Path) -> int:
    """Bytes that are free on the disk of a file or folder, which need not be there yet."""
    place = path.absolute()
    return shutil.disk_usage(next(there for there in (place, *place.parents) if there.exists())).free


def size_on_disk(path: Path) -> int:
    """Bytes that a folder takes; parts of files that were never written take none."""
    return sum(512 * file.stat().st_blocks for file in path.rglob("*") if file.is_file())


def readable(nbytes: float) -> str:
    """A size as one would say it."""
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:.1f} MB"
