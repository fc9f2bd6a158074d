"""Random draws that can be told apart: what a policy was trained on, and what it was not.

A ``split`` keeps looks apart, not only seeds. Both splits cover a range of values from end to end, so that neither is
harder than the other, and yet share no value: the range is cut into narrow stripes, which belong to them by turns.
"""

import numpy as np
from numpy.typing import NDArray

from pixio_robot.errors import UnknownNameError

Bound = float | NDArray[np.float64]

SPLITS = ("train", "test")
_STRIPES = 8  # of each split


def check_split(split: str | None) -> None:
    """Let a split pass: None, which draws from everything, or one of ``SPLITS``.

    Raises:
        UnknownNameError: Another name.
    """
    if split is not None and split not in SPLITS:
        raise UnknownNameError("split", split, SPLITS)


class Draws:
    """Draws for one episode.

    Args:
        random: Where randomness comes from.
        split: One of ``SPLITS``, or None for the whole of each range.
    """

    def __init__(self, random: np.random.Generator, split: str | None) -> None:
        check_split(split)
        self.random, self._split = random, split

    def uniform(self, low: Bound, high: Bound, size: int | tuple[int, ...] | None = None) -> NDArray[np.float64]:
        """Draw numbers of shape ``size`` between ``low`` and ``high``, in this split's stripes of that range."""
        if self._split is None:
            return np.asarray(self.random.uniform(low, high, size=size))
        drawn = self.random.uniform(size=size) * _STRIPES
        stripe = np.floor(drawn)
        share = (2 * stripe + SPLITS.index(self._split) + drawn - stripe) / (2 * _STRIPES)
        return np.asarray(low) + share * (np.asarray(high) - np.asarray(low))

    def choice[Item](self, items: tuple[Item, ...]) -> Item:
        """Draw one of several things; each belongs to one split, by turns."""
        mine = items if self._split is None else items[SPLITS.index(self._split) :: len(SPLITS)]
        return mine[int(self.random.integers(len(mine)))]
