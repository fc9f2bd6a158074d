"""One moment in two looks: pictures between which lights and colours differ, and no pixel moves."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixio_pretrain.data.samples import Sample
from pixio_pretrain.data.source import Frames, Related, Source
from pixio_robot.errors import DataError

STRANGE = 25
"""Levels of 255 by which a pixel differs from what is usually there, in its own looks, where something moves."""

_MEDIAN_OF = 48  # pictures of each task and camera


class Looks(Related):
    """Frames whose samples are made of two looks, of what moves there, and of another frame.

    What moves is where a picture in its own looks differs from the median of those of its task and camera, so cameras
    must stand still from episode to episode; one on the hand sees everything move.

    Args:
        frames: The other frames, which know their ``places`` with looks, and their tasks.

    Raises:
        DataError: If they do not, or if a moment was seen in one look only.
    """

    def __init__(self, frames: Frames) -> None:
        places = frames.places
        if places is None or places.look is None or frames.tasks is None:
            raise DataError(
                "Descriptors are learnt from frames of which each moment was seen in several looks: "
                "scripts/render_frames.py FOLDER --looks 3 --shift looks."
            )
        super().__init__(frames)
        order = np.lexsort((places.look, places.camera, places.moment, frames.episodes))
        groups = np.stack([frames.episodes, places.moment, places.camera], axis=1)[order]
        first = np.flatnonzero(np.r_[True, (groups[1:] != groups[:-1]).any(axis=1)])
        sizes = np.diff(np.r_[first, len(order)])
        if sizes.min() < 2 or (places.look[order[first]] != 0).any():
            raise DataError("Every moment must be seen in its own looks (0) and in one other at least; some are not.")
        self._order, self._rank = order, np.argsort(order)
        self._first, self._end = np.repeat(first, sizes), np.repeat(first + sizes, sizes)
        own, kinds = order[first], np.stack([frames.tasks, places.camera], axis=1)
        _, self._kind = np.unique(kinds, axis=0, return_inverse=True)
        of = self._kind[own]
        self._usual = [self._median(own[of == kind]) for kind in range(int(of.max()) + 1)]

    def sample(self, index: int, make: Callable[..., Sample], random: np.random.Generator) -> Sample:
        """Make a sample of one image, the same in another look, what moves in it (bool [h w]), and another image."""
        rank = int(self._rank[index])
        first, end = int(self._first[rank]), int(self._end[rank])
        other = int(random.integers(first, end - 1))
        other += other >= rank
        moving = self.moving(index)
        stranger = self.image(int(random.integers(len(self))))
        return make(self.image(index), random, self.image(int(self._order[other])), moving, stranger)

    def moving(self, index: int) -> NDArray[np.bool_]:
        """Where something is that usually is not: bool [h w]."""
        own = self._pixels(int(self._order[self._first[self._rank[index]]])).astype(np.int16)
        return np.abs(own - self._usual[self._kind[index]]).max(axis=-1) > STRANGE

    def _median(self, indices: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
        some = indices[np.unique(np.linspace(0, len(indices) - 1, min(_MEDIAN_OF, len(indices))).astype(np.int64))]
        return np.median([self._pixels(int(index)) for index in some], axis=0).astype(np.uint8)

    def _pixels(self, index: int) -> NDArray[np.uint8]:
        return np.asarray(self.frames.image(index))


def look_twice(source: Source) -> Source:
    """Let samples be made of two looks.

    Raises:
        DataError: As ``Looks``, and for sources that are read in runs.
    """
    if not isinstance(source, Frames):
        raise DataError(
            f"Descriptors need frames with random access, and {source.describe()['kind']} are read in runs; "
            "scripts/render_frames.py writes what has it."
        )
    return Looks(source)
