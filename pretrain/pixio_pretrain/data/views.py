"""Batches of samples. Everything about a batch follows from the seed and the step, so that a run can start anywhere."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from pixio_pretrain.data.frames import Frames
from pixio_pretrain.data.samples import Batch, SampleMaker


@dataclass(frozen=True, kw_only=True, slots=True)
class Views(Dataset[Batch]):
    """Samples of frames, as batches that are indexed by step.

    Every frame is seen once per pass, in an order of its own for each pass.

    Attributes:
        frames: Where images come from.
        indices: Which of them to use.
        batch_size: Samples per batch.
        samples: What an objective makes of an image.
        seed: Fixes order and chance.
    """

    frames: Frames
    indices: NDArray[np.int64]
    batch_size: int
    samples: SampleMaker
    seed: int

    def __getitem__(self, step: int) -> Batch:
        """Make the batch of one step."""
        return self.load(self._order(step), np.random.default_rng([self.seed, 1, step]))

    def load(self, indices: NDArray[np.int64], random: np.random.Generator) -> Batch:
        """Make samples of some frames and stack them."""
        samples = [self.samples(self.frames.image(index), random) for index in indices]
        return {key: torch.from_numpy(np.stack([sample[key] for sample in samples])) for key in samples[0]}

    def _order(self, step: int) -> NDArray[np.int64]:
        """Frame indices [b] of one step; a batch may reach over the end of a pass."""
        places = step * self.batch_size + np.arange(self.batch_size)
        passes, places = np.divmod(places, len(self.indices))
        return np.concatenate([self._permutation(turn)[places[passes == turn]] for turn in np.unique(passes)])

    def _permutation(self, turn: int) -> NDArray[np.int64]:
        return np.random.default_rng([self.seed, 0, turn]).permutation(self.indices)
