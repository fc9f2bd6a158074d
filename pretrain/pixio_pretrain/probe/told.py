"""Positions without an encoder: what a perfect eye would leave to learn, and what is learnt from colours alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from torch import Tensor

from pixio_pretrain.data import Frames
from pixio_pretrain.probe.geometry import GeometryProbe, Rows, measure_position
from pixio_pretrain.probe.looks import picture
from pixio_pretrain.probe.truth import Truth

Told = Callable[[str], tuple[Tensor, Tensor]]
"""From a target to what it is read from: in training frames [n f], and in held-out ones [m f]."""

SIDE, COLORS = 128, 64
"""Pixels of a side at which colours are looked for, and how many."""

_FOREGROUND = 0.14  # distance from the background's colour, of cubes with sides of 1
_SOFT = 4 / 255  # standard deviation of a colour
_PIXELS = 40_000  # that colours are learnt from


def probe_told(
    tell: Callable[[Frames, Truth, Rows, Rows], Told], frames: Frames, truth: Truth, train: Rows, held_out: Rows
) -> GeometryProbe:
    """Read positions from what is told of the frames of each camera and task.

    Args:
        tell: ``exact_places`` or ``color_places``.
        frames: Frames that know their tasks.
        truth: The answers, for the same rows.
        train: Rows to fit on.
        held_out: Rows to measure on, of other episodes.
    """
    assert frames.tasks is not None, "encoders are asked first"
    found = GeometryProbe()
    for number, camera in enumerate(truth.cameras):
        rows = [kind[truth.camera[kind] == number] for kind in (train, held_out)]
        for task in np.unique(frames.tasks[rows[1]]):
            fitted, asked = (kind[frames.tasks[kind] == task] for kind in rows)
            told = tell(frames, truth, fitted, asked)
            for target in truth.world:
                for features in ("grid", "fine grid"):  # beside which it stands in the tables
                    facts = {"camera": camera, "task": frames.task_names[int(task)], "target": target}
                    facts["features"] = features
                    measure_position(found, facts, told(target), frames, truth, fitted, asked)
    return found


def exact_places(_: Frames, truth: Truth, train: Rows, held_out: Rows) -> Told:
    """Tell where in the picture each thing is, two numbers: what is left is how far off, and few scenes."""

    def told(target: str) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(truth.place(target, train)), torch.from_numpy(truth.place(target, held_out))

    return told


def color_places(frames: Frames, _: Truth, train: Rows, held_out: Rows) -> Told:
    """Tell where the colours are that come and go in the training frames, and how much there is of each."""
    pictures = [_pixels(frames, rows) for rows in (train, held_out)]
    palette = Palette.learn(pictures[0])
    told = palette(pictures[0]), palette(pictures[1])
    return lambda _: told


def _pixels(frames: Frames, rows: Rows) -> NDArray[np.uint8]:
    """Pictures [n p 3], pixels row by row."""
    return torch.cat([picture(frames, row, SIDE) for row in rows]).flatten(2).transpose(1, 2).numpy()


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
    def learn(cls, pictures: NDArray[np.uint8]) -> Self:
        """Cluster what is not background (k-means from k-means++; Arthur and Vassilvitskii 2007).

        Args:
            pictures: [n p 3].
        """
        background = (np.median(pictures, axis=0) / 255).astype(np.float32)
        seen = np.concatenate([_foreground(one, background)[0] for one in pictures])
        chance = np.random.default_rng(0)
        some = seen[chance.permutation(len(seen))[:_PIXELS]]
        count = min(COLORS, len(np.unique(some, axis=0)))
        colors = kmeans2(some, count, minit="++", rng=chance)[0] if count else np.zeros((1, 3))
        return cls(background, colors.astype(np.float32))

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
    colors = pixels.astype(np.float32) / 255
    rows = np.flatnonzero(np.square(colors - background).sum(axis=1) > _FOREGROUND**2)
    down, right = np.divmod(rows, SIDE)
    return colors[rows], (2 * np.stack([right, down], axis=1) / (SIDE - 1) - 1).astype(np.float32)
