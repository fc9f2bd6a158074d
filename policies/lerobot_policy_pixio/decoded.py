"""Frames that were decoded once, for training an encoder: its features change, so there is nothing else to keep."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from huggingface_hub.utils import tqdm
from numpy.typing import NDArray
from torch import Tensor

from lerobot_policy_pixio.frames import DatasetFrames
from pixio_robot.drafts import draft_of

Frames = Mapping[str, NDArray[np.uint8]]
"""Camera to all frames of a data set in order, uint8 [n 3 h w]."""
BLOCK = 512
"""Frames that are decoded at once."""


class PixelStore:
    """Decoded frames, gathered as ``TokenStore`` gathers tokens.

    Args:
        frames: Each camera's.
        cameras: Which of them to give.
        device: Where they go.
    """

    def __init__(self, frames: Frames, cameras: Sequence[str], device: torch.device) -> None:
        self._frames, self._device = {camera: frames[camera] for camera in cameras}, device

    def gather(self, rows: Tensor, variants: Tensor | None = None) -> dict[str, Tensor]:
        """Give each camera's images of some rows [b], or [b t]: uint8 [b 3 h w], or [b t 3 h w]."""
        assert variants is None, "decoded frames have no variants"
        where = rows.cpu().numpy()
        return {camera: torch.from_numpy(frames[where]).to(self._device) for camera, frames in self._frames.items()}


def decode_frames(frames: DatasetFrames, folder: Path) -> Frames:
    """Decode a data set's videos once, for all who train on it: as files that are mapped into memory.

    Args:
        frames: The data set.
        folder: Where the files go, one ``.npy`` per camera, 3 bytes a pixel; they are made if they are not there. Their
            names hold the data set's hash, so that one that was edited or recorded anew is decoded anew.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = frames.fingerprint[:12]
    with FileLock(folder / ".lock"):
        return {camera: _decode(frames, camera, folder / f"{camera}-{name}.npy") for camera in frames.cameras}


def _decode(frames: DatasetFrames, camera: str, path: Path) -> NDArray[np.uint8]:
    if not path.exists():
        for left in path.parent.glob(f"{path.name}.*.writing"):
            left.unlink()  # gigabytes of a process that was killed: the lock is ours
        shape = (len(frames), *frames.read(camera, 0, 1).shape[1:])
        with draft_of(path) as draft:
            decoded = np.lib.format.open_memmap(draft, mode="w+", dtype=np.uint8, shape=shape)
            for start in tqdm(range(0, len(frames), BLOCK), desc=f"decode {camera}", unit="block"):
                stop = min(start + BLOCK, len(frames))
                decoded[start:stop] = frames.read(camera, start, stop).numpy()
            decoded.flush()
    return np.load(path, mmap_mode="r")
