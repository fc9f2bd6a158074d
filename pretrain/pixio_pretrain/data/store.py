"""Frames in a zarr v3 group, such as ``lerobot_env_pixio.render_frames`` writes."""

import logging
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from PIL import Image

from pixio_pretrain.data.source import Frames, Places
from pixio_robot.errors import DataError
from pixio_robot.machine import free_memory

logger = logging.getLogger(__name__)

IN_MEMORY = 0.5
"""Share of the free memory that a store may fill in all processes of a run together."""

UNKNOWN = 8 << 30
"""Bytes that are taken to be free where the system does not tell."""

CHUNKS = 32
"""Chunks of a larger store that are kept once they are read."""


class FrameStore(Frames):
    """A zarr v3 group: ``frames`` uint8 [n h w 3], ``episode`` [n] and, where known, ``task``, ``camera``, ``look``.

    The rows of an episode are in the order of time. The key is "episode/row". Pixels are read into memory if they fit
    into half of what is free; those of a larger store come chunk by chunk, which costs the decoding of a chunk for a
    frame, since neighbours are rarely asked for together.

    Args:
        folder: The group's.
        in_memory: Bytes of pixels up to which a store is read whole; of None, half of what is free, less where torchrun
            started several processes on this machine, which hold a copy each.

    Raises:
        DataError: If the folder holds none, or one that is not finished.
    """

    def __init__(self, folder: Path, *, in_memory: int | None = None) -> None:
        arrays, self.attributes = _open(folder)
        frames = arrays["frames"]
        self._episodes = np.asarray(arrays["episode"][:])
        self._tasks = np.asarray(arrays["task"][:], dtype=np.int64) if "task" in arrays else None
        self._cameras = np.asarray(arrays["camera"][:]) if "camera" in arrays else None
        self._looks = np.asarray(arrays["look"][:]) if "look" in arrays else None
        limit = _room() if in_memory is None else in_memory
        if frames.nbytes > limit:
            logger.warning(
                "%s holds %.1f GiB of pixels, and %.1f GiB may be kept in memory: they are read chunk by chunk, "
                "which is slower. Fewer processes or smaller frames would fit.",
                folder,
                frames.nbytes / 2**30,
                limit / 2**30,
            )
        self._pixels = np.asarray(frames[:]) if frames.nbytes <= limit else _Chunked(frames)

    @property
    def episodes(self) -> NDArray[np.integer[Any]]:
        """The recording that each frame belongs to, [n]."""
        return self._episodes

    @property
    def tasks(self) -> NDArray[np.int64] | None:
        """What is going on in each frame, [n]."""
        return self._tasks

    @property
    def task_names(self) -> list[str]:
        """Names of the tasks."""
        return self.attributes.get("tasks", [])

    @property
    def places(self) -> Places | None:
        """When and by which camera each frame was taken: moments count what one camera saw in its episode."""
        if self._cameras is None:
            return None
        looks = np.zeros_like(self._cameras) if self._looks is None else self._looks
        order = np.lexsort((np.arange(len(self)), looks, self._cameras, self._episodes))
        shot = np.stack([self._episodes, self._cameras, looks], axis=1)[order]
        first = np.flatnonzero(np.r_[True, (shot[1:] != shot[:-1]).any(axis=1)])
        moment = np.empty(len(self), dtype=np.int64)
        moment[order] = np.arange(len(self)) - np.repeat(first, np.diff(np.r_[first, len(self)]))
        return Places(moment, self._cameras, self._looks)

    def key(self, index: int) -> str:
        """Episode and row of one frame."""
        return f"{self._episodes[index]}/{index}"

    def image(self, index: int) -> Image.Image:
        """One frame, RGB."""
        return Image.fromarray(self._pixels[index])

    def describe(self) -> dict[str, Any]:
        """Which frames they are, by how they were made."""
        return {"kind": "frame store", "frames": len(self), **self.attributes}


class _Chunked:
    """Rows of a zarr array, by way of the chunks that were read last."""

    def __init__(self, frames: Any) -> None:
        self._frames = frames
        self._rows: int = frames.chunks[0]
        self._chunk = lru_cache(CHUNKS)(self._read)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        return self._chunk(index // self._rows)[index % self._rows]

    def __reduce__(self) -> tuple[type, tuple[Any]]:
        """Go to a worker process without what was read."""
        return type(self), (self._frames,)

    def _read(self, chunk: int) -> NDArray[np.uint8]:
        return np.asarray(self._frames[chunk * self._rows : (chunk + 1) * self._rows])


def _room() -> int:
    """Bytes of pixels that this process may keep."""
    return int(IN_MEMORY * (free_memory() or UNKNOWN)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _open(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays and attributes of a finished store."""
    try:
        group = zarr.open_group(folder, mode="r")
    except (FileNotFoundError, ValueError) as error:
        raise DataError(f"{folder} holds no zarr group of frames: {error}") from error
    arrays: dict[str, Any] = dict(group.arrays())
    if not {"frames", "episode"} <= arrays.keys():
        raise DataError(f"{folder} holds the arrays {sorted(arrays)}; a frame store has 'frames' and 'episode'.")
    attributes: dict[str, Any] = group.attrs.asdict()
    if attributes.get("complete") is not True:
        raise DataError(f"{folder} is not finished: run the command that renders it again, and it continues.")
    frames = arrays["frames"]
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise DataError(
            f"The frames in {folder} are {frames.dtype} {list(frames.shape)}; they must be uint8 [n, h, w, 3]."
        )
    return arrays, attributes
