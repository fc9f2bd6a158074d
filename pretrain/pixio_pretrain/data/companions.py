"""Images in pairs: each one comes with another picture of the same scene."""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixio_pretrain.data.samples import Batch, BatchMaker, Sample
from pixio_pretrain.data.source import Frames, Related, Source
from pixio_robot.errors import DataError, SettingError, UnknownNameError

Companion = Literal["none", "later", "camera"]
"""Which other picture: none; one of the same camera, a few moments later; one of another camera at the same moment."""


class Companions(Related):
    """Other frames, whose samples are made of two images each.

    Args:
        frames: The other frames, which know their ``places``.
        companion: "later" or "camera".
        reach: The most moments between a picture and its later one. Any two pictures that close may be a pair; the
            earlier one comes first.

    Raises:
        DataError: If the frames do not know when and by which camera they were taken, or if one has no companion.
    """

    def __init__(self, frames: Frames, companion: Companion, *, reach: int) -> None:
        places = frames.places
        if places is None:
            raise DataError(
                f"companion={companion!r} needs frames that know their moment and camera, as those of "
                f"scripts/render_frames.py do; these ({frames.describe().get('kind', 'frames')}) do not."
            )
        super().__init__(frames)
        self.companion, self.reach = companion, reach
        shared, own = (places.camera, places.moment) if companion == "later" else (places.moment, places.camera)
        look = np.zeros_like(own) if places.look is None else places.look
        self._order = np.lexsort((own, shared, look, frames.episodes))  # companions lie side by side
        self._rank = np.argsort(self._order)
        groups = np.stack([frames.episodes, look, shared], axis=1)[self._order]
        first = np.flatnonzero(np.r_[True, (groups[1:] != groups[:-1]).any(axis=1)])
        sizes = np.diff(np.r_[first, len(self._order)])
        if sizes.min() < 2:
            alone = frames.key(int(self._order[first[sizes.argmin()]]))
            raise DataError(f"companion={companion!r} needs two pictures of everything, and {alone} is the only one.")
        self._first, self._end = np.repeat(first, sizes), np.repeat(first + sizes, sizes)

    def sample(self, index: int, make: Callable[..., Sample], random: np.random.Generator) -> Sample:
        """Make a sample of one image and a companion drawn by chance."""
        first, second = self.pair(index, random)
        return make(self.image(first), random, self.image(second))

    def batch(self, indices: Sequence[int], pixels: Tensor, make: BatchMaker, random: np.random.Generator) -> Batch:
        """Make a batch of some images and of companions drawn by chance."""
        first, second = torch.from_numpy(self.pairs(indices, random)).to(pixels.device).unbind(1)
        return make(pixels[first], random, pixels[second])

    def pair(self, index: int, random: np.random.Generator) -> tuple[int, int]:
        """Draw the companion of an image; with "later" the two come in the order of time."""
        first, second = self.pairs([index], random)[0].tolist()
        return first, second

    def pairs(self, indices: Sequence[int], random: np.random.Generator) -> NDArray[np.int64]:
        """Draw the companion of each of b images: [b 2], as ``pair`` does."""
        rank = self._rank[np.asarray(indices)]
        first, end = self._first[rank], self._end[rank]
        if self.companion == "later":
            first, end = np.maximum(first, rank - self.reach), np.minimum(end, rank + self.reach + 1)
        other = random.integers(first, end - 1)
        other += other >= rank
        ranks = np.stack([rank, other], axis=1)
        return self._order[np.sort(ranks) if self.companion == "later" else ranks]


def check_companion(companion: str, reach: int) -> None:
    """Refuse settings that cannot be.

    Raises:
        UnknownNameError: If there is no such companion.
        SettingError: If a later companion may be no moment later.
    """
    if companion not in get_args(Companion):
        raise UnknownNameError("companion", companion, get_args(Companion))
    if reach < 1:
        raise SettingError(f"companion_reach must be at least 1, not {reach}.")


def accompany(source: Source, companion: Companion, *, reach: int) -> Source:
    """Give each image of a source a companion; the source itself for "none".

    Raises:
        DataError: As ``Companions``, and for sources that are read in runs.
    """
    if companion == "none":
        return source
    if not isinstance(source, Frames):
        raise DataError(
            f"companion={companion!r} needs random access, and {source.describe()['kind']} are read in runs; "
            "scripts/render_frames.py writes what has it."
        )
    return Companions(source, companion, reach=reach)
