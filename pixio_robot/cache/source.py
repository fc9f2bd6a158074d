"""What a cache is built from: frames, and a way to augment them."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Generator, Tensor


class FrameSource(Protocol):
    """Frames that can be encoded: a data set with one or more cameras, addressed by global frame index."""

    @property
    def cameras(self) -> Sequence[str]:
        """The cameras' names."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identifies the content: another or a changed data set has another fingerprint."""
        ...

    def __len__(self) -> int:
        """Number of frames per camera."""
        ...

    def read(self, camera: str, start: int, stop: int) -> Tensor:
        """Frames ``start`` to ``stop`` of one camera: uint8 [n 3 h w]."""
        ...

    def row_checksums(self) -> np.ndarray:
        """Uint32 [frames], of what a training batch carries besides images.

        A cache keeps them, so that each batch can prove that it is of the data set which the cache was built from.
        """
        ...


class Augmentation(Protocol):
    """A random change of images that keeps their meaning."""

    @property
    def description(self) -> Mapping[str, Any]:
        """What it does, in JSON's types. It is part of a cache's identity."""
        ...

    def __call__(self, frames: Tensor, generator: Generator, /) -> Tensor:
        """Change uint8 [n 3 h w] to uint8 [n 3 h w]; ``generator`` is the only source of chance."""
        ...


def augment_frames(images: Tensor, augment: Augmentation, *, start: int, variant: int) -> Tensor:
    """Change each image by chance that depends on its index and the variant alone.

    Args:
        images: Uint8 [n 3 h w], consecutive frames of one camera.
        augment: What changes them.
        start: Global index of the first.
        variant: Which of several changes of the same frame, from 1.

    Returns:
        Uint8 [n 3 h w].
    """
    changed = []
    for row, image in enumerate(images.split(1), start):
        seed = np.random.SeedSequence((variant, row)).generate_state(1, np.uint64)[0]
        changed.append(augment(image, Generator().manual_seed(int(seed))))
    return torch.cat(changed)
