"""Where images come from: sources with random access, and sources that are best read in runs.

Every image has a key, the same on every machine and in every pass, by which skips are reported and curation keeps its
scores: "cats/12.jpg" in a folder, "train-003.tar/0012.jpg" in tar shards, "observation.images.top/7/31" (camera,
episode, frame) in videos, "7/2531" (episode, row) in a frame store.
"""

import io
import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pixio_pretrain.data.samples import Batch, BatchMaker, Sample
from pixio_pretrain.data.skips import Skipped
from pixio_robot.errors import DataError, ImageError

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")


class Source(ABC):
    """A set of images."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Which images they are, in JSON's types and without places on this machine: part of a run's identity."""

    @abstractmethod
    def split(self, share: float) -> tuple["Source", "Source"]:
        """Hold whole episodes or shards out, always the same ones.

        Args:
            share: Share to hold out; at least one episode or shard is, and at least one is not.

        Returns:
            What to train on, and what is held out.

        Raises:
            DataError: If there is nothing to divide.
        """

    @abstractmethod
    def each(self) -> Iterator[tuple[str, Callable[[], Image.Image]]]:
        """Give every image's key once, in the order in which they lie, and what reads the image, RGB.

        Reading raises an ``ImageError`` where the image cannot be decoded.
        """

    def visit(
        self, skipped: Skipped | None = None, *, without: Container[str] = ()
    ) -> Iterator[tuple[str, Image.Image]]:
        """Give every image once, RGB, with its key, in the order in which they lie.

        Args:
            skipped: Comes to hold the samples that cannot be read; a fresh one unless given.
            without: Keys that are passed over and not decoded; they count as read unless ``skipped`` holds them.

        Raises:
            DataError: If more samples than ``skipped`` allows cannot be read, or none can.
        """
        skipped = Skipped() if skipped is None else skipped
        seen = 0
        for key, read in self.each():
            if key in without:
                seen += key not in skipped
                continue
            try:
                image = read()
            except ImageError as error:
                skipped.add(key, str(error), seen=seen)
                continue
            seen += 1
            yield key, image
        skipped.refuse_empty(seen)


class Places(NamedTuple):
    """Where in its episode each image was taken.

    Attributes:
        moment: Number of its point in time, [n].
        camera: Number of its camera, [n].
        look: Number of its lights and colours, [n], 0 being the scene's own; None where each moment was seen in one.
    """

    moment: NDArray[np.integer[Any]]
    camera: NDArray[np.integer[Any]]
    look: NDArray[np.integer[Any]] | None = None


class Frames(Source):
    """Images with random access."""

    @property
    @abstractmethod
    def episodes(self) -> NDArray[np.integer[Any]]:
        """The recording that each image belongs to, [n]; images of one recording are nearly alike."""

    @property
    def tasks(self) -> NDArray[np.int64] | None:
        """What is going on in each image, [n] indices into ``task_names``; None where nobody said."""
        return None

    @property
    def task_names(self) -> Sequence[str]:
        """Names of the tasks."""
        return ()

    @property
    def places(self) -> Places | None:
        """When and by which camera each image was taken; None where nobody said."""
        return None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.episodes)

    @abstractmethod
    def key(self, index: int) -> str:
        """The name of one image."""

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """One image, RGB.

        Raises:
            ImageError: If it cannot be decoded.
        """

    def sample(self, index: int, make: Callable[..., Sample], random: np.random.Generator) -> Sample:
        """Make a sample of one image; ``make`` is a ``SampleMaker``.

        Raises:
            ImageError: If it cannot be decoded.
        """
        return make(self.image(index), random)

    def batch(self, indices: Sequence[int], pixels: Tensor, make: BatchMaker, random: np.random.Generator) -> Batch:
        """Make a batch of some images, where ``pixels`` [n 3 h w], which are those of all of them, lie."""
        return make(pixels[torch.tensor(indices, device=pixels.device)], random)

    def split(self, share: float) -> tuple["Frames", "Frames"]:
        """Hold whole episodes out, see ``split_episodes``."""
        train, held_out = split_episodes(self.episodes, share)
        return Subset(self, train), Subset(self, held_out)

    def each(self) -> Iterator[tuple[str, Callable[[], Image.Image]]]:
        """Give every key and what reads its image, in the order of the indices."""
        for index in range(len(self)):
            yield self.key(index), partial(self.image, index)


class Subset(Frames):
    """Some images of another source.

    Args:
        frames: The other source.
        indices: Which of its images, [n].
    """

    def __init__(self, frames: Frames, indices: NDArray[np.integer[Any]]) -> None:
        self.frames = frames
        self.indices = indices.astype(np.min_scalar_type(len(frames)))  # tens of millions of them must be no burden

    @property
    def episodes(self) -> NDArray[np.integer[Any]]:
        """The recording that each image belongs to, [n]."""
        return self.frames.episodes[self.indices]

    @property
    def tasks(self) -> NDArray[np.int64] | None:
        """What is going on in each image, [n]."""
        return None if self.frames.tasks is None else self.frames.tasks[self.indices]

    @property
    def task_names(self) -> Sequence[str]:
        """Names of the tasks."""
        return self.frames.task_names

    @property
    def places(self) -> Places | None:
        """When and by which camera each image was taken."""
        places = self.frames.places
        if places is None:
            return None
        look = None if places.look is None else places.look[self.indices]
        return Places(places.moment[self.indices], places.camera[self.indices], look)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.indices)

    def key(self, index: int) -> str:
        """The name of one image, as the other source has it."""
        return self.frames.key(int(self.indices[index]))

    def image(self, index: int) -> Image.Image:
        """One image, RGB."""
        return self.frames.image(int(self.indices[index]))

    def describe(self) -> dict[str, Any]:
        """Which images they are."""
        return self.frames.describe() | {"part": len(self)}


class Related(Frames):
    """Other frames as they are; for those whose samples are made of more than one of them.

    Args:
        frames: The other frames.
    """

    def __init__(self, frames: Frames) -> None:
        self.frames = frames

    @property
    def episodes(self) -> NDArray[np.integer[Any]]:
        """The recording that each image belongs to, [n]."""
        return self.frames.episodes

    def key(self, index: int) -> str:
        """The name of one image."""
        return self.frames.key(index)

    def image(self, index: int) -> Image.Image:
        """One image, RGB, without those that are related."""
        return self.frames.image(index)

    def describe(self) -> dict[str, Any]:
        """Which images they are."""
        return self.frames.describe()


@dataclass(frozen=True, slots=True)
class Entry:
    """A sample as a stream gives it, small enough to wait in a shuffle buffer.

    Attributes:
        number: Its place in its run.
        key: Its name.
        content: An encoded image, RGB pixels [h w 3], or why there is none.
        torn: Whether it is no sample, but stands for the rest of its run, which cannot be read; it has the run's name.
    """

    number: int
    key: str
    content: bytes | NDArray[np.uint8] | ImageError
    torn: bool = False

    def image(self) -> Image.Image:
        """The image, RGB.

        Raises:
            ImageError: If it cannot be decoded.
        """
        if isinstance(self.content, ImageError):
            raise self.content
        if isinstance(self.content, bytes):
            return decode_image(io.BytesIO(self.content))
        return Image.fromarray(self.content)


class Stream(Source):
    """Images that are best read in runs: one run after the other, each one from its start or from a later entry."""

    @property
    @abstractmethod
    def runs(self) -> int:
        """How many runs there are."""

    @abstractmethod
    def read(self, run: int, start: int = 0) -> Iterator[Entry]:
        """Read a run.

        Args:
            run: Its number.
            start: Number of the first entry to give.

        Yields:
            Entries by ascending number, the same at every reading. Damage does not raise: it is an entry, too.
        """

    @abstractmethod
    def split(self, share: float) -> tuple[Self, Self]:
        """Hold whole episodes or shards out, always the same ones."""

    def each(self) -> Iterator[tuple[str, Callable[[], Image.Image]]]:
        """Give every key and what reads its image, run by run."""
        for run in range(self.runs):
            for entry in self.read(run):
                yield entry.key, entry.image


def decode_image(file: Path | io.BytesIO) -> Image.Image:
    """Decode an image to RGB.

    Raises:
        ImageError: If it cannot be decoded.
    """
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
        raise ImageError(str(error) or type(error).__name__) from error


def split_episodes(episodes: NDArray[np.integer[Any]], share: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Hold whole episodes out, always the same ones.

    Args:
        episodes: [n], the episode of each frame.
        share: Share of the episodes to hold out; at least one is, and at least one is not.

    Returns:
        Frame indices to train on, and frame indices held out; both ascending.

    Raises:
        DataError: If there is only one episode.
    """
    names = np.unique(episodes)
    if len(names) < 2:
        raise DataError("All frames belong to one episode, so none can be held out; bring at least two.")
    count = min(max(1, round(share * len(names))), len(names) - 1)
    held_out = np.isin(episodes, np.random.default_rng(0).permutation(names)[:count])
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)
