"""All chance in the data: generators that follow from a seed, a purpose and a place, and from nothing else."""

from collections.abc import Callable
from enum import IntEnum

import numpy as np

from pixio_robot.errors import DataError

Keep = Callable[[str], float]
"""Gives the probability, by its key, that a sample is used in a pass."""


class Purpose(IntEnum):
    """What a generator decides."""

    ORDER = 0
    SAMPLE = 1
    WINDOW = 2
    KEEP = 3
    SUBSTITUTE = 4


def generator(seed: int, purpose: Purpose, *place: int) -> np.random.Generator:
    """Make the generator of one decision."""
    return np.random.default_rng([seed, purpose, *place])


class Sieve:
    """Decides for each pass which samples are used in it, the same on all ranks.

    Args:
        keep: The probability of each sample; None keeps all.
        seed: Fixes chance.
    """

    def __init__(self, keep: Keep | None, seed: int) -> None:
        self.keep = keep
        self.seed = seed
        self._hope = keep is None

    def passes(self, key: str, turn: int, *place: int) -> bool:
        """Decide on a sample.

        Args:
            key: Its name.
            turn: Number of the pass.
            place: Its place in the source.
        """
        if self.keep is None:
            return True
        probability = self.keep(key)
        self._hope |= probability > 0
        if 0 < probability < 1:
            return generator(self.seed, Purpose.KEEP, turn, *place).random() < probability
        return probability >= 1

    def refuse_empty(self) -> None:
        """Refuse, after a pass without a sample, probabilities that can never give one.

        Raises:
            DataError: If all samples have probability 0.
        """
        if not self._hope:
            raise DataError("keep gives every sample the probability 0: nothing is left to train on.")
