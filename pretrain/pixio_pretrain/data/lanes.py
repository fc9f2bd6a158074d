"""The order in which a stream is seen: runs dealt out to lanes, and in each lane a shuffle buffer that can be rebuilt.

A lane is one worker process of one rank. It cuts the samples that fall to it into windows, as large as the buffer, and
gives each window in an order of its own; while one window empties, the next fills. So the state of a lane is where its
window begins and how many samples of it were given out: resuming reads the window again.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import NamedTuple

from pixio_pretrain.data.chance import Keep, Purpose, Sieve, generator
from pixio_pretrain.data.source import Entry, Stream
from pixio_robot.errors import DataError


class Slot(NamedTuple):
    """An entry, and where in the lane it comes from: the pass, the place in the lane's runs of that pass, the run."""

    turn: int
    place: int
    run: int
    entry: Entry


@dataclass(frozen=True, slots=True)
class Mark:
    """Where a lane stands.

    Attributes:
        turn: The pass in which its window begins.
        place: The place in the lane's runs of that pass at which it begins.
        number: The entry of that run with which it begins.
        drawn: Samples of the window that were given out, those skipped included.
    """

    turn: int = 0
    place: int = 0
    number: int = 0
    drawn: int = 0


class Lane:
    """An endless sequence of shuffled entries.

    Where there are fewer runs than lanes, several lanes share the runs and take turns at their entries.

    Args:
        stream: What is seen.
        number: Which lane this is.
        of: How many lanes there are.
        buffer: Samples among which the order is random.
        seed: Fixes the order.
        keep: Probability of each sample to be used in a pass.
    """

    def __init__(self, stream: Stream, *, number: int, of: int, buffer: int, seed: int, keep: Keep | None) -> None:
        teams = min(of, stream.runs)
        self._stream = stream
        self._number, self._lanes = number, of
        self._buffer = buffer
        self._seed = seed
        self._sieve = Sieve(keep, seed)
        self._team, self._teams = number % teams, teams
        self._member, self._members = number // teams, len(range(number % teams, of, teams))

    def draw(self, at: Mark) -> Iterator[tuple[Slot, Mark]]:
        """Give entries in random order, each with where the lane stands after it.

        Raises:
            DataError: If there is nothing to give.
        """
        slots = self._slots(at)
        window, drawn = list(self._window(slots)), at.drawn
        while True:
            start = Mark(window[0].turn, window[0].place, window[0].entry.number)
            place = (self._number, start.turn, start.place, start.number)
            order = generator(self._seed, Purpose.WINDOW, *place).permutation(len(window))
            coming: list[Slot] = []
            rest = self._window(slots)
            pace = -(-self._buffer // max(1, len(window) - drawn))  # the next is full when this one is empty
            waiting: list[Slot | None] = [window[index] for index in order]
            window.clear()
            while drawn < len(waiting):
                slot, waiting[drawn] = waiting[drawn], None
                assert slot is not None
                drawn += 1
                yield slot, replace(start, drawn=drawn)
                coming += islice(rest, pace)
            window, drawn = [*coming, *rest], 0

    def _window(self, slots: Iterator[Slot | None]) -> Iterator[Slot]:
        """Give the slots of one window: as many as the buffer holds, or what is left of the pass."""
        given = 0
        for slot in slots:
            if slot is not None:
                given += 1
                yield slot
            if given == self._buffer or (slot is None and given):
                return

    def _slots(self, at: Mark) -> Iterator[Slot | None]:
        """Read the lane's runs, pass after pass, from a mark on; None is the end of a pass."""
        place, start = at.place, at.number
        for turn in count(at.turn):
            given = 0
            runs = generator(self._seed, Purpose.ORDER, turn).permutation(self._stream.runs)[self._team :: self._teams]
            for place, run in enumerate(runs[place:].tolist(), place):  # noqa: B020, the range is made before
                for entry in self._stream.read(run, start):
                    mine = entry.number % self._members == self._member
                    if mine and (entry.torn or self._sieve.passes(entry.key, turn, run, entry.number)):
                        given += 1
                        yield Slot(turn, place, run, entry)
                start = 0
            if not given and turn > at.turn:  # the first pass may have begun at its end
                self._refuse_empty()
            place = 0
            yield None

    def _refuse_empty(self) -> None:
        """A whole pass gave nothing: chance may do that, but only where there is chance."""
        self._sieve.refuse_empty()
        if self._sieve.keep is None:
            raise DataError(
                f"There is no sample for lane {self._number + 1} of {self._lanes} (ranks times workers): "
                f"{self._stream.runs} runs are too few, or empty. Use fewer workers; or, for a single tar shard, "
                "whose few samples views.held_out divides by a hash, a greater share."
            )
