"""Batches without end, from any source, that can be taken up again after any of them."""

import signal
from collections.abc import Generator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from pixio_pretrain.data.chance import Keep
from pixio_pretrain.data.lanes import Mark
from pixio_pretrain.data.order import Place, requests
from pixio_pretrain.data.resident import ResidentFrames
from pixio_pretrain.data.samples import Batch, SampleMaker
from pixio_pretrain.data.skips import Skipped
from pixio_pretrain.data.source import Frames, Source, Stream
from pixio_pretrain.data.workers import FramesWorker, Made, StreamWorker
from pixio_robot.errors import DataError, PixioRobotError, SettingError


@dataclass(frozen=True, slots=True)
class Loaded:
    """A batch.

    Attributes:
        batch: Stacked samples.
        keys: The name of the image behind each of them.
    """

    batch: Batch
    keys: list[str]


class Loader:
    """Batches of samples for one rank, without end: every sample once per pass, each pass in an order of its own.

    With random access (``Frames``), order and chance are those of one global sequence, which depends neither on the
    number of ranks nor on that of workers: two ranks with half the batch see what one rank sees. Streams are divided
    over ranks and workers instead, and shuffled in a buffer.

    A sample that cannot be read is noted in ``skipped``. In its place comes another one, with random access one drawn
    by chance, in a stream the next.

    Args:
        source: What to load.
        samples: What an objective makes of an image.
        batch_size: Samples per batch of this rank.
        seed: Fixes order and chance.
        rank: Which rank this is.
        world: How many ranks there are.
        workers: Processes that make batches; 0 makes them in this one.
        keep: The probability, by a sample's key, that it is used in a pass; None uses all.
        buffer: Samples of a stream, per rank and worker, among which the order is random; 1 leaves their order.
        max_skipped: How many samples may be unreadable; below 1, which share of those given out so far, and ten in any
            case.
        pin_memory: Put batches where a GPU copies them from fastest.
        resident: The source's frames on the device that trains, which makes the batches there, in place of ``samples``
            and ``workers``.

    Attributes:
        skipped: Samples that could not be read: key to reason.

    Raises:
        SettingError: If a number cannot be.
    """

    def __init__(
        self,
        source: Source,
        samples: SampleMaker,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        keep: Keep | None = None,
        buffer: int = 2048,
        max_skipped: float = 100,
        pin_memory: bool = False,
        resident: ResidentFrames | None = None,
    ) -> None:
        if min(batch_size, buffer) < 1 or workers < 0 or not 0 <= rank < world:
            raise SettingError(
                f"batch_size={batch_size}, buffer={buffer}, workers={workers}, rank={rank} of {world}: batch_size and "
                "buffer must be at least 1, workers at least 0, and rank must lie in [0, world)."
            )
        self.source = source
        self.samples = samples
        self.batch_size = batch_size
        self.seed = seed
        self.rank, self.world, self.workers = rank, world, workers
        self.keep = keep
        self.buffer = buffer
        self.pin_memory = pin_memory
        self.resident = resident
        self.skipped = Skipped(max_skipped)
        self._given = 0  # samples of all ranks
        self._place = Place()
        self._marks = [Mark() for _ in range(max(1, workers))]
        self._next = 0  # the lane, of those of this rank, that gives the next batch

    def __iter__(self) -> Generator[Loaded]:
        """Give batches, from where the last one that was given out ends.

        Raises:
            DataError: If there are more unreadable samples than allowed, or nothing but those.
        """
        for item in self._load_frames(self.source) if isinstance(self.source, Frames) else self._load_stream():
            if isinstance(item, PixioRobotError):
                raise item
            self._note(item)
            yield Loaded(item.batch, item.keys)

    def state_dict(self) -> dict[str, Any]:
        """Where this rank stands after the last batch given out, in numbers, strings, lists and dictionaries.

        With random access it is the same on all ranks. Of a stream each rank has its own to keep, and it fits the same
        number of ranks and workers only.
        """
        state: dict[str, Any] = {"given": self._given, "skipped": dict(self.skipped)}
        if isinstance(self.source, Frames):
            return state | {"kind": "frames", "place": asdict(self._place)}
        lanes = {"rank": self.rank, "world": self.world, "lanes": len(self._marks), "buffer": self.buffer}
        return state | {"kind": "stream", **lanes, "marks": [asdict(mark) for mark in self._marks], "next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where ``state_dict`` was taken; the next ``iter`` begins there.

        Raises:
            DataError: If it belongs to another kind of source, or to another division of a stream.
        """
        ours = self.state_dict()
        for name in ("kind", "rank", "world", "lanes", "buffer"):
            if state.get(name) != ours.get(name):
                raise DataError(
                    f"The position was saved with {name}={state.get(name)!r}, and this loader has {ours.get(name)!r}; "
                    "a stream continues with the ranks, workers and buffer that it was begun with."
                )
        self._given = state["given"]
        self.skipped.clear()
        self.skipped.update(state["skipped"])
        if "place" in state:
            self._place = Place(**state["place"])
        else:
            self._marks = [Mark(**mark) for mark in state["marks"]]
            self._next = state["next"]

    def _load_frames(self, frames: Frames) -> DataLoader[Made | PixioRobotError]:
        """Let workers make what one sequence, drawn in this process, asks of them."""
        asked = requests(
            frames,
            self._place,
            batch_size=self.batch_size,
            seed=self.seed,
            rank=self.rank,
            world=self.world,
            keep=self.keep,
        )
        if self.resident:
            return self._workers(self.resident, sampler=asked)
        worker = FramesWorker(frames, self.samples, seed=self.seed, keep=self.keep, limit=self.skipped.limit)
        return self._workers(worker, sampler=asked)

    def _load_stream(self) -> DataLoader[Made | PixioRobotError]:
        """Let each worker go along a lane of its own; PyTorch takes their batches in turn, beginning with the first."""
        assert isinstance(self.source, Stream)
        count = len(self._marks)
        turns = [(self._next + worker) % count for worker in range(count)]
        worker = StreamWorker(
            self.source,
            self.samples,
            batch_size=self.batch_size,
            seed=self.seed,
            lanes=[self.rank * count + lane for lane in turns],
            marks=[self._marks[lane] for lane in turns],
            of=self.world * count,
            buffer=self.buffer,
            keep=self.keep,
            limit=self.skipped.limit,
        )
        return self._workers(worker)

    def _workers(self, dataset: Dataset[Any], **order: Any) -> DataLoader[Made | PixioRobotError]:
        return DataLoader(
            dataset,
            batch_size=None,
            num_workers=self.workers,
            pin_memory=self.pin_memory,
            generator=torch.Generator(),  # the workers' seeds must not be drawn from the global generator
            worker_init_fn=outlive_termination,
            **order,
        )

    def _note(self, made: Made) -> None:
        """Take down that a batch is given out."""
        self._given += self.batch_size * self.world
        if isinstance(made.after, Place):
            self._place = made.after
        else:
            self._marks[self._next] = made.after
            self._next = (self._next + 1) % len(self._marks)
        for key, reason in made.skipped.items():
            self.skipped.add(key, reason, seen=self._given)


def outlive_termination(worker: int) -> None:
    """Leave SIGTERM to the trainer: it goes to workers, too, and their death would stop it from saving.

    For the ``worker_init_fn`` of a DataLoader.
    """
    del worker
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
