"""Frames to pre-train on: a zarr store of rendered frames, or a folder of images."""

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pixio_robot.errors import DataError, ImageError

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Frames(ABC):
    """A set of frames.

    Attributes:
        episodes: [n], the recording that each frame belongs to; frames of one recording are nearly alike.
        tasks: [n], what is going on, an index into ``task_names``; None where nobody said.
        task_names: Names of the tasks.
    """

    episodes: NDArray[np.int64]
    tasks: NDArray[np.int64] | None = None
    task_names: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.episodes)

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """One frame, RGB."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Where the frames come from, in JSON's types."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameStore(Frames):
    """Frames in memory, read from a zarr v3 group.

    Attributes:
        pixels: uint8 [n h w 3].
        attributes: The attributes of the group.
    """

    pixels: NDArray[np.uint8]
    attributes: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "FrameStore":
        """Read a whole store.

        Raises:
            DataError: If the folder holds none, or one that is not finished.
        """
        try:
            group = zarr.open_group(folder, mode="r")
        except (FileNotFoundError, ValueError) as error:
            raise DataError(f"{folder} holds no zarr group of frames: {error}") from error
        arrays = dict(group.arrays())
        if not {"frames", "episode"} <= arrays.keys():
            raise DataError(f"{folder} holds the arrays {sorted(arrays)}; a frame store has 'frames' and 'episode'.")
        attributes: dict[str, Any] = group.attrs.asdict()
        if attributes.get("complete") is not True:
            raise DataError(f"{folder} is not finished: run the command that renders it again, and it continues.")
        if arrays["frames"].ndim != 4 or arrays["frames"].shape[-1] != 3 or arrays["frames"].dtype != np.uint8:
            raise DataError(
                f"The frames in {folder} are {arrays['frames'].dtype} {list(arrays['frames'].shape)}; "
                "they must be uint8 [n, h, w, 3]."
            )
        logger.info("Reading %.1f GB of frames from %s.", arrays["frames"].nbytes / 1e9, folder)
        return cls(
            pixels=np.asarray(arrays["frames"][:]),
            episodes=np.asarray(arrays["episode"][:], dtype=np.int64),
            tasks=np.asarray(arrays["task"][:], dtype=np.int64) if "task" in arrays else None,
            task_names=attributes.get("tasks", []),
            attributes=attributes,
        )

    def image(self, index: int) -> Image.Image:
        """One frame, RGB."""
        return Image.fromarray(self.pixels[index])

    def describe(self) -> dict[str, Any]:
        """Where the frames come from."""
        return {"kind": "frame store", "frames": len(self), **self.attributes}


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFolder(Frames):
    """Images below a folder, in the order of their paths, decoded when asked for.

    Images of one folder are taken for one recording where there are several folders; otherwise each stands alone.

    Attributes:
        paths: The image files.
    """

    paths: list[Path]

    @classmethod
    def find(cls, folder: Path) -> "ImageFolder":
        """List the images.

        Raises:
            DataError: If there are none.
        """
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        if not paths:
            raise DataError(f"{folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}).")
        _, episodes = np.unique([str(path.parent) for path in paths], return_inverse=True)
        return cls(paths=paths, episodes=episodes if episodes.any() else np.arange(len(paths)))

    def image(self, index: int) -> Image.Image:
        """One image, RGB.

        Raises:
            ImageError: If the file cannot be decoded.
        """
        try:
            with Image.open(self.paths[index]) as image:
                return image.convert("RGB")
        except (UnidentifiedImageError, OSError) as error:
            raise ImageError(f"{self.paths[index]} cannot be read as an image: {error}") from error

    def describe(self) -> dict[str, Any]:
        """Where the frames come from."""
        return {"kind": "image folder", "frames": len(self)}


def open_frames(path: str | Path) -> Frames:
    """Open whatever lies at ``path``: a zarr group of frames, or a folder of images.

    Raises:
        DataError: If it is neither.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        raise DataError(f"There is no folder at {path.absolute()}; frames come as a zarr group or a folder of images.")
    return FrameStore.read(path) if (path / "zarr.json").is_file() else ImageFolder.find(path)


def split_episodes(episodes: NDArray[np.int64], share: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Hold whole episodes out, always the same ones.

    Args:
        episodes: [n], the episode of each frame.
        share: Share of the episodes to hold out; at least one is, and at least one is not.

    Returns:
        Frame indices to train on, and frame indices held out; both ascending.

    Raises:
        DataError: If there is only one episode.
    """
    names = np.unique(episodes)
    if len(names) < 2:
        raise DataError("All frames belong to one episode, so none can be held out; bring at least two.")
    count = min(max(1, round(share * len(names))), len(names) - 1)
    held_out = np.isin(episodes, np.random.default_rng(0).permutation(names)[:count])
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)
