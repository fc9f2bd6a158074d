"""The order in which a source with random access is seen: one sequence, of which each rank takes its slices."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice

import numpy as np

from pixio_pretrain.data.chance import Keep, Purpose, Sieve, generator
from pixio_pretrain.data.source import Frames


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the sequence a run stands.

    Attributes:
        turn: The pass.
        place: The next place in the order of that pass.
        position: Samples that all ranks have been given.
    """

    turn: int = 0
    place: int = 0
    position: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """One rank's slice of a global batch.

    Attributes:
        indices: Images.
        position: Position in the global sequence of the first of them.
        after: Where the run stands once the batch is given out.
    """

    indices: list[int]
    position: int
    after: Place


def requests(
    frames: Frames, at: Place, *, batch_size: int, seed: int, rank: int, world: int, keep: Keep | None
) -> Iterator[Request]:
    """Go through the passes without end, each in an order of its own.

    Args:
        frames: What is seen.
        at: Where to begin.
        batch_size: Samples per rank.
        seed: Fixes the order.
        rank: Which slice of the global batch to take.
        world: How many slices there are.
        keep: Probability of each sample to be used in a pass.

    Raises:
        DataError: If ``keep`` keeps nothing.
    """
    sequence = _sequence(frames, at, Sieve(keep, seed))
    for position in count(at.position, batch_size * world):
        taken = list(islice(sequence, batch_size * world))
        mine = [index for index, _, _ in taken[rank * batch_size : (rank + 1) * batch_size]]
        _, turn, place = taken[-1]
        after = Place(turn, place + 1, position + len(taken))
        yield Request(mine, position + rank * batch_size, after)


def _sequence(frames: Frames, at: Place, sieve: Sieve) -> Iterator[tuple[int, int, int]]:
    """Give the images that are used: index, pass and place in its order."""
    first = at.place
    for turn in count(at.turn):
        order = np.arange(len(frames), dtype=np.min_scalar_type(len(frames)))  # 4 bytes a sample, even of billions
        generator(sieve.seed, Purpose.ORDER, turn).shuffle(order)
        given = False
        for place in range(first, len(order)):
            index = int(order[place])
            if sieve.keep is None or sieve.passes(frames.key(index), turn, index):
                given = True
                yield index, turn, place
        if not given and turn > at.turn:  # the first pass may have begun at its end
            sieve.refuse_empty()
        first = 0
