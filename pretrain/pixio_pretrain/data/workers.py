"""What runs in the worker processes: reading, decoding, sampling and stacking."""

from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from pixio_pretrain.data.chance import Keep, Purpose, generator
from pixio_pretrain.data.lanes import Lane, Mark, Slot
from pixio_pretrain.data.order import Place, Request
from pixio_pretrain.data.samples import Batch, Sample, SampleMaker
from pixio_pretrain.data.skips import Skipped
from pixio_pretrain.data.source import Frames, Stream
from pixio_robot.errors import ImageError, PixioRobotError

PATIENCE = 100
"""How many draws for one place, for each sample that was found unreadable, until all are taken for unreadable. Were one
more readable, and drawn as often as each of those, it would be missed once in 2 ** 100 times at the most."""


class Made(NamedTuple):
    """A batch on its way to the loader; a tuple of dictionaries and lists, which PyTorch knows how to pin.

    Attributes:
        batch: Stacked samples.
        keys: Their names.
        skipped: Samples that could not be read while it was made.
        after: Where the sequence or the lane stands once it is given out.
    """

    batch: Batch
    keys: list[str]
    skipped: dict[str, str]
    after: Place | Mark


class FramesWorker(Dataset[Made | PixioRobotError]):
    """Makes the batches that are asked of it, from images with random access; errors are given, not raised.

    Args:
        frames: Where images come from.
        samples: What an objective makes of an image.
        seed: Fixes chance.
        keep: Probability of each sample to be used.
        limit: See ``Skipped``.
    """

    def __init__(self, frames: Frames, samples: SampleMaker, *, seed: int, keep: Keep | None, limit: float) -> None:
        self._frames = frames
        self._samples = samples
        self._seed = seed
        self._keep = keep
        self._skipped = Skipped(limit)

    def __getitem__(self, request: Request) -> Made | PixioRobotError:
        """Make one batch."""
        skipped: dict[str, str] = {}
        try:
            made = [self._sample(index, request.position + at, skipped) for at, index in enumerate(request.indices)]
        except PixioRobotError as error:
            return error
        return Made(stack([sample for _, sample in made]), [key for key, _ in made], skipped, request.after)

    def _sample(self, index: int, position: int, skipped: dict[str, str]) -> tuple[str, Sample]:
        """Make the sample of one position; where its image cannot be read, of another image drawn by chance."""
        substitute = generator(self._seed, Purpose.SUBSTITUTE, position)
        for drawn in count(1):
            key = self._frames.key(index)
            try:
                return key, self._frames.sample(index, self._samples, generator(self._seed, Purpose.SAMPLE, position))
            except ImageError as error:
                skipped[key] = self._skipped[key] = str(error)
                self._skipped.check(position)
                if len(self._skipped) == len(self._frames) or drawn > PATIENCE * len(self._skipped):
                    self._skipped.refuse_empty(0)  # all that there are, or all that are kept
                index = self._draw(substitute)
        raise AssertionError("one can be read, or all were refused")

    def _draw(self, random: np.random.Generator) -> int:
        while True:
            index = int(random.integers(len(self._frames)))
            if self._keep is None or random.random() < self._keep(self._frames.key(index)):
                return index


class StreamWorker(IterableDataset[Made | PixioRobotError]):
    """Makes the batches of one lane after the other; errors are given, not raised.

    Args:
        stream: Where images come from.
        samples: What an objective makes of an image.
        batch_size: Samples per batch.
        seed: Fixes order and chance.
        lanes: The numbers of the lanes of this rank; as many as workers, and the first one gives the first batch.
        marks: Where those lanes stand.
        of: How many lanes all ranks have.
        buffer: Samples of a lane among which the order is random.
        keep: Probability of each sample to be used.
        limit: See ``Skipped``.
    """

    def __init__(
        self,
        stream: Stream,
        samples: SampleMaker,
        *,
        batch_size: int,
        seed: int,
        lanes: list[int],
        marks: list[Mark],
        of: int,
        buffer: int,
        keep: Keep | None,
        limit: float,
    ) -> None:
        self._samples = samples
        self._batch_size = batch_size
        self._seed = seed
        self._lanes = [Lane(stream, number=lane, of=of, buffer=buffer, seed=seed, keep=keep) for lane in lanes]
        self._marks = marks
        self._skipped = Skipped(limit)

    def __iter__(self) -> Iterator[Made | PixioRobotError]:
        """Make batches without end, all from the lane of this process."""
        info = get_worker_info()
        worker = info.id if info else 0
        try:
            yield from self._batches(self._lanes[worker], self._marks[worker])
        except PixioRobotError as error:
            yield error

    def _batches(self, lane: Lane, mark: Mark) -> Iterator[Made]:
        draws, good, seen = lane.draw(mark), mark.turn, 0
        while True:
            keys: list[str] = []
            samples: list[Sample] = []
            skipped: dict[str, str] = {}
            while len(samples) < self._batch_size:
                slot, mark = next(draws)
                try:
                    samples.append(self._sample(slot))
                except ImageError as error:
                    skipped[slot.entry.key] = self._skipped[slot.entry.key] = str(error)
                    self._skipped.check(seen * len(self._lanes))
                    if slot.turn > good + 1:  # a whole pass lies between
                        self._skipped.refuse_empty(0)
                else:
                    keys.append(slot.entry.key)
                    good, seen = slot.turn, seen + 1
            yield Made(stack(samples), keys, skipped, mark)

    def _sample(self, slot: Slot) -> Sample:
        random = generator(self._seed, Purpose.SAMPLE, slot.turn, slot.run, slot.entry.number)
        return self._samples(slot.entry.image(), random)


def stack(samples: list[Sample]) -> Batch:
    """Stack samples by key."""
    return {key: torch.from_numpy(np.stack([sample[key] for sample in samples])) for key in samples[0]}
