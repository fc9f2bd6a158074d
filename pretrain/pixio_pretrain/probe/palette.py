"""Where colours are: keypoints that need no learning but clustering, and so very few pictures."""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from torch import Tensor

_FOREGROUND = 0.14  # distance from the background's colour, where a cube of all colours has sides of 1
_SOFT = 4 / 255  # standard deviation of a colour
_NOWHERE = 9.0  # a colour that nothing has
_PIXELS = 40_000  # that colours are learnt from


@dataclass(frozen=True, slots=True)
class Palette:
    """Colours, and the background before which they are.

    Attributes:
        background: Median colour of each pixel, in [0, 1], float32 [p 3].
        colors: [k 3].
    """

    background: NDArray[np.float32]
    colors: NDArray[np.float32]

    @classmethod
    def learn(cls, pictures: NDArray[np.uint8], count: int) -> Self:
        """Cluster what is not background (k-means from k-means++; Arthur and Vassilvitskii 2007).

        Args:
            pictures: [n p 3].
            count: How many colours k; where there are fewer, the last are far from any.
        """
        background = (np.median(pictures, axis=0) / 255).astype(np.float32)
        seen = np.concatenate([_foreground(one, background)[0] for one in pictures])
        chance = np.random.default_rng(0)
        some = seen[chance.permutation(len(seen))[:_PIXELS]]
        colors = np.full((count, 3), _NOWHERE, np.float32)
        if there := min(count, len(np.unique(some, axis=0))):
            colors[:there] = kmeans2(some, there, minit="++", rng=chance)[0]
        return cls(background, colors)

    def __call__(self, pictures: NDArray[np.uint8]) -> Tensor:
        """Give every colour's mean place, from -1 to 1 to the right and down, and the log of its amount: [n 3k]."""
        return torch.from_numpy(np.stack([self._find(one) for one in pictures]))

    def _find(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        seen, where = _foreground(pixels, self.background)
        far = np.square(seen[:, None] - self.colors).sum(axis=2) / (2 * _SOFT**2)
        weights = np.exp(far.min(axis=1, keepdims=True, initial=np.inf) - far)
        weights /= weights.sum(axis=1, keepdims=True)
        amount = weights.sum(axis=0)
        places = weights.T @ where / (amount[:, None] + 1e-3)
        return np.concatenate([places.ravel(), np.log1p(amount)]).astype(np.float32)


def _foreground(
    pixels: NDArray[np.uint8], background: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Give the colours [m 3] of those pixels that differ from the background, and their places [m 2] from -1 to 1."""
    colors = pixels.astype(np.float32) / np.float32(255)
    rows = np.flatnonzero(np.square(colors - background).sum(axis=1) > _FOREGROUND**2)
    side = math.isqrt(len(pixels))
    down, right = np.divmod(rows, side)
    return colors[rows], (2 * np.stack([right, down], axis=1) / max(1, side - 1) - 1).astype(np.float32)
