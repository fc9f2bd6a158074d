"""Frames that were decoded once, for training an encoder: its features change, so there is nothing else to keep.

As a feature cache does, they may come with augmented variants, the same that a cache of the same pictures shows.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from huggingface_hub.utils import tqdm
from numpy.typing import NDArray
from torch import Tensor

from lerobot_policy_pixio.augmentation import ImageAugmentation
from lerobot_policy_pixio.frames import DatasetFrames
from pixio_robot.cache import augment_frames
from pixio_robot.drafts import draft_of

BLOCK = 512
"""Frames that are decoded at once."""


@dataclass(frozen=True, kw_only=True)
class DecodedFrames:
    """All frames of a data set, decoded.

    Attributes:
        images: Camera to all frames in order, uint8 [n 3 h w]: the clean ones, then each augmented variant of them.
        augmentation: What made the variants, as an ``Augmentation`` describes itself; None where there are none.
    """

    images: Mapping[str, Sequence[NDArray[np.uint8]]]
    augmentation: Mapping[str, Any] | None = None

    @property
    def variants(self) -> int:
        """Number of augmented variants besides the clean frames."""
        return min((len(one) for one in self.images.values()), default=1) - 1


class PixelStore:
    """Decoded frames, gathered as ``TokenStore`` gathers tokens.

    Args:
        frames: The data set's.
        cameras: Which of them to give.
        device: Where they go.
    """

    def __init__(self, frames: DecodedFrames, cameras: Sequence[str], device: torch.device) -> None:
        self._frames, self._device = {camera: frames.images[camera] for camera in cameras}, device

    def gather(self, rows: Tensor, variants: Tensor | None = None) -> dict[str, Tensor]:
        """Give each camera's images of some rows [b], or [b t]: uint8 [b 3 h w], or [b t 3 h w].

        Args:
            rows: Global frame indices.
            variants: Which variant of each, of the shape of ``rows``; the clean frames when absent.
        """
        drawn = np.zeros(rows.shape, np.int64) if variants is None else variants.cpu().numpy()
        where, gathered = rows.cpu().numpy(), {}
        for camera, frames in self._frames.items():
            images = np.empty((*where.shape, *frames[0].shape[1:]), np.uint8)
            for variant in np.unique(drawn):
                images[drawn == variant] = frames[variant][where[drawn == variant]]
            gathered[camera] = torch.from_numpy(images).to(self._device)
        return gathered


def decode_frames(
    frames: DatasetFrames, folder: Path, *, variants: int = 0, augment: ImageAugmentation | None = None
) -> DecodedFrames:
    """Decode a data set's videos once, for all who train on it: as files that are mapped into memory.

    Args:
        frames: The data set.
        folder: Where the files go, per camera one ``.npy`` of the clean frames and one of each variant, 3 bytes a
            pixel; they are made if they are not there. Their names hold the hash of the data set, so that one that was
            edited or recorded anew is decoded anew, and that of the augmentation.
        variants: Number of augmented variants besides the clean frames.
        augment: Makes the variants; needed for them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = frames.fingerprint[:12]
    with FileLock(folder / ".lock"):
        images = {
            camera: _decode(frames, camera, folder / f"{camera}-{name}.npy", variants=variants, augment=augment)
            for camera in frames.cameras
        }
    return DecodedFrames(images=images, augmentation=augment.description if augment and variants else None)


def _decode(
    frames: DatasetFrames, camera: str, path: Path, *, variants: int, augment: ImageAugmentation | None
) -> list[NDArray[np.uint8]]:
    count = len(frames)
    decoded = [_store(path, count, lambda start, stop: frames.read(camera, start, stop), what=f"decode {camera}")]
    for variant in range(1, variants + 1):
        assert augment is not None, "variants come with an augmentation"

        def change(start: int, stop: int, variant: int = variant, augment: ImageAugmentation = augment) -> Tensor:
            clean = torch.from_numpy(decoded[0][start:stop].copy())
            return augment_frames(clean, augment, start=start, variant=variant)

        how = hashlib.sha256(json.dumps(augment.description).encode()).hexdigest()[:8]
        place = path.with_name(f"{path.stem}-{how}-{variant}.npy")
        decoded.append(_store(place, count, change, what=f"change {camera}, {variant} of {variants}"))
    return decoded


def _store(path: Path, count: int, read: Callable[[int, int], Tensor], *, what: str) -> NDArray[np.uint8]:
    """Map a file of all frames into memory; if it is not there, write it block by block."""
    if not path.exists():
        for left in path.parent.glob(f"{path.name}.*.writing"):
            left.unlink()  # gigabytes of a process that was killed: the lock is ours
        shape = (count, *read(0, 1).shape[1:])
        with draft_of(path) as draft:
            stored = np.lib.format.open_memmap(draft, mode="w+", dtype=np.uint8, shape=shape)
            for start in tqdm(range(0, count, BLOCK), desc=what, unit="block"):
                stop = min(start + BLOCK, count)
                stored[start:stop] = read(start, stop).numpy()
            stored.flush()
    return np.load(path, mmap_mode="r")
