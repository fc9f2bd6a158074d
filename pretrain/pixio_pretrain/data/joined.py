"""Several sources as one, such as the frames of two simulators."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pixio_pretrain.data.source import Frames, Places, Source
from pixio_robot.errors import DataError


class Joined(Frames):
    """Sources with random access, one behind the other; the key is the source's number and its own key, "1:7/2531".

    Where images know their task, moment and camera in every source, they do here; those of equal number in different
    sources are different ones.

    Args:
        parts: The sources.

    Raises:
        DataError: If one is read in runs.
    """

    def __init__(self, parts: Sequence[Source]) -> None:
        self.parts: list[Frames] = []
        for part in parts:
            if not isinstance(part, Frames):
                raise DataError(
                    f"Sources are joined by '+' if they have random access, and {part.describe()['kind']} are read in "
                    "runs: pack all images into shards, or take folders and what scripts/render_frames.py writes."
                )
            self.parts.append(part)
        self._ends = np.cumsum([len(part) for part in self.parts])
        self._episodes = _behind([part.episodes for part in self.parts])

    @property
    def episodes(self) -> NDArray[np.integer[Any]]:
        """The recording that each image belongs to, [n]."""
        return self._episodes

    @property
    def tasks(self) -> NDArray[np.int64] | None:
        """What is going on in each image, [n]."""
        tasks = [part.tasks for part in self.parts if part.tasks is not None]
        if len(tasks) < len(self.parts):
            return None
        return _behind(tasks, lengths=[len(part.task_names) for part in self.parts])

    @property
    def task_names(self) -> Sequence[str]:
        """Names of the tasks."""
        return [name for part in self.parts for name in part.task_names]

    @property
    def places(self) -> Places | None:
        """When and by which camera each image was taken."""
        places = [part.places for part in self.parts if part.places is not None]
        if len(places) < len(self.parts):
            return None
        return Places(np.concatenate([place.moment for place in places]), _behind([place.camera for place in places]))

    def key(self, index: int) -> str:
        """The number of its source and its name there."""
        number, within = self._find(index)
        return f"{number}:{self.parts[number].key(within)}"

    def image(self, index: int) -> Image.Image:
        """One image, RGB."""
        number, within = self._find(index)
        return self.parts[number].image(within)

    def describe(self) -> dict[str, Any]:
        """Which images they are."""
        return {"kind": "joined sources", "frames": len(self), "parts": [part.describe() for part in self.parts]}

    def _find(self, index: int) -> tuple[int, int]:
        """The source that an image lies in, and its index there."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        return number, index - (int(self._ends[number - 1]) if number else 0)


def _behind(numbers: Sequence[NDArray[np.integer[Any]]], *, lengths: Sequence[int] | None = None) -> NDArray[np.int64]:
    """Lay numbers behind each other so that no source has one of another's; ``lengths`` say how many each has."""
    if lengths is None:
        lengths = [int(part.max(initial=-1)) + 1 for part in numbers]
    before = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    return np.concatenate([part.astype(np.int64) + start for part, start in zip(numbers, before, strict=True)])
