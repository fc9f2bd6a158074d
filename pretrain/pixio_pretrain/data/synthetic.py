"""Images out of nothing, as many as one likes: for benchmarks, and to try a run before the data is there."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pixio_pretrain.data.source import Frames
from pixio_robot.errors import DataError


class Synthetic(Frames):
    """Smooth colours with a square somewhere, drawn from a generator of their own; the key is the number.

    Args:
        start: Number of the first image.
        stop: Number after the last.
        side: Pixels.
    """

    def __init__(self, start: int, stop: int, *, side: int = 128) -> None:
        self.range = range(start, stop)
        self.side = side

    @property
    def episodes(self) -> NDArray[np.integer[Any]]:
        """Each image is a recording of its own, [n]."""
        return np.arange(len(self.range))

    def __len__(self) -> int:
        """Number of images."""
        return len(self.range)

    def key(self, index: int) -> str:
        """The number of one image."""
        return str(self.range[index])

    def image(self, index: int) -> Image.Image:
        """Draw one image, RGB."""
        random = np.random.default_rng(self.range[index])
        colors = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        image = colors.resize((self.side, self.side), Image.Resampling.BICUBIC)
        square = max(1, self.side // 4)
        left, top = (int(place) for place in random.integers(0, self.side - square + 1, 2))
        red, green, blue = (int(level) for level in random.integers(0, 256, 3))
        image.paste((red, green, blue), (left, top, left + square, top + square))
        return image

    def split(self, share: float) -> tuple["Synthetic", "Synthetic"]:
        """Hold the last images out; they are all alike."""
        if len(self) < 2:
            raise DataError("One image cannot be divided; bring at least two.")
        cut = self.range.stop - min(max(1, round(share * len(self))), len(self) - 1)
        train, held_out = (self.range.start, cut), (cut, self.range.stop)
        return Synthetic(*train, side=self.side), Synthetic(*held_out, side=self.side)

    def describe(self) -> dict[str, Any]:
        """Which images they are."""
        return {"kind": "synthetic", "first": self.range.start, "frames": len(self), "side": self.side}
