"""A folder of images."""

import hashlib
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pixio_pretrain.data.source import IMAGE_SUFFIXES, Frames, decode_image
from pixio_robot.errors import DataError


class ImageFolder(Frames):
    """Images below a folder, in the order of their paths, decoded when asked for; the key is the path below the folder.

    Links are followed; a folder that is reached by several ways counts once, by its own path if that is below.
    Images of one folder are taken for one recording where there are several folders; otherwise each stands alone.

    Args:
        folder: The folder.

    Raises:
        DataError: If there are no images.
    """

    def __init__(self, folder: Path) -> None:
        paths = sorted(path.relative_to(folder).as_posix() for path in find_images(folder))
        if not paths:
            raise DataError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)}).")
        self.folder = folder
        self.paths = np.array(paths, dtype=np.dtypes.StringDType())  # a fifth of the memory of a list
        _, folders = np.unique([path.rpartition("/")[0] for path in paths], return_inverse=True)
        self._episodes = folders if folders.any() else np.arange(len(paths))

    @property
    def episodes(self) -> NDArray[np.integer[Any]]:
        """The folder of each image, or a number for each, [n]."""
        return self._episodes

    def key(self, index: int) -> str:
        """The path of one image below the folder."""
        return str(self.paths[index])

    def image(self, index: int) -> Image.Image:
        """One image, RGB."""
        return decode_image(self.folder / self.key(index))

    def describe(self) -> dict[str, Any]:
        """Which images they are, by a hash over their paths."""
        names = hashlib.sha256("\n".join(self.paths).encode()).hexdigest()
        return {"kind": "image folder", "frames": len(self), "names": names}


def find_images(folder: Path) -> Iterator[Path]:
    """Find images below a folder, and then below the links in it that lead to folders not seen so far."""
    waiting, seen = deque([folder]), set[str]()
    while waiting:
        for place, folders, names in os.walk(waiting.popleft()):
            real = os.path.realpath(place)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            waiting += [Path(place, name) for name in sorted(folders) if Path(place, name).is_symlink()]
            files = (Path(place, name) for name in names)
            yield from (file for file in files if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
