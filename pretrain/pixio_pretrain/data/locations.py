"""From what a user writes after ``data=`` to a source."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub

from pixio_pretrain.data.folder import ImageFolder, find_images
from pixio_pretrain.data.joined import Joined
from pixio_pretrain.data.shards import TarShards
from pixio_pretrain.data.source import Frames, Source
from pixio_pretrain.data.store import FrameStore
from pixio_pretrain.data.synthetic import Synthetic
from pixio_pretrain.data.video import LeRobotVideo
from pixio_robot.errors import DataError, SettingError

KINDS = """Data may be:
  a folder of images, or of tar shards
  a tar shard, or several: "train-*.tar", "train-{000..127}.tar", any URL that fsspec opens
  the folder of a LeRobotDataset with videos, or "lerobot:user/name" from the hub
  the zarr group that scripts/render_frames.py writes
  "synthetic:10000000", so many generated images; "synthetic:10000000x256" with their side
  several of these that have random access (folders of images, zarr groups), joined by a plus: "one+another\""""


def open_source(location: str | Path, *, cameras: Sequence[str] | None = None, stride: int = 1) -> Source:
    """Open whatever lies at a location.

    Args:
        location: See ``KINDS``.
        cameras: Cameras of a LeRobotDataset; None for all.
        stride: Take one frame in so many of a LeRobotDataset.

    Raises:
        DataError: If nothing usable lies there.
        SettingError: If cameras or a stride are given for something else, or the stride is not positive.
        UnknownNameError: If there is no such camera.
    """
    written = str(location)
    folder = Path(written).expanduser()
    if written.startswith("lerobot:") or (folder / "meta" / "info.json").is_file():
        return LeRobotVideo(_find_dataset(written.removeprefix("lerobot:")), cameras=cameras, stride=stride)
    if cameras is not None or stride != 1:
        raise SettingError(f"cameras and stride belong to a LeRobotDataset, which {location} is not.")
    if match := re.fullmatch(r"synthetic:(\d+)(?:x(\d+))?", written):
        return Synthetic(0, int(match[1]), side=int(match[2] or 128))
    if folder.is_dir():
        return _open_folder(folder)
    if "://" in written or re.search(r"[*?\[{]", written) or folder.is_file():
        return TarShards.find(written)
    if "+" in written:
        return Joined([open_source(part) for part in written.split("+")])
    raise DataError(f"There is nothing at {folder.absolute()}.{_nearest(folder)} {KINDS}")


def _open_folder(folder: Path) -> Source:
    if (folder / "zarr.json").is_file():
        return FrameStore(folder)
    image = next(find_images(folder), None)
    shallow = (shard for pattern in ("*.tar", "*/*.tar") for shard in folder.glob(pattern))
    shard = next(shallow if image else folder.rglob("*.tar"), None)  # below, images by the million would be walked
    if shard is None:
        return ImageFolder(folder)
    if image is None:
        return TarShards.find(str(folder))
    raise DataError(
        f"{folder} holds images, such as {image.relative_to(folder)}, and tar shards, such as "
        f"{shard.relative_to(folder)}: move one kind elsewhere, or name the shards alone (data='{folder}/**/*.tar')."
    )


def _find_dataset(name: str) -> Path:
    """The folder of a LeRobotDataset, on this machine or from the hub."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    try:
        wanted = ["meta/*", "videos/*"]
        return Path(huggingface_hub.snapshot_download(name, repo_type="dataset", allow_patterns=wanted))
    except (OSError, ValueError) as error:
        raise DataError(f"{name} is no folder, and the hub does not give a data set of that name: {error}") from error


def open_frames(location: str | Path) -> Frames:
    """Open a source with random access.

    Raises:
        DataError: If nothing usable lies there, or a source that can only be read in runs.
    """
    source = open_source(location)
    if not isinstance(source, Frames):
        raise DataError(
            f"{location} can only be read in runs ({source.describe()['kind']}); random access is needed here: "
            "a folder of images or a zarr group of frames."
        )
    return source


def _nearest(folder: Path) -> str:
    names = [path.name for path in folder.parent.iterdir()] if folder.parent.is_dir() else []
    close = difflib.get_close_matches(folder.name, names, n=1)
    return f" Did you mean {folder.parent / close[0]}?" if close else ""
