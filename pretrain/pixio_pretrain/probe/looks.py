"""Ways to look at a frame: through an encoder, at its bare pixels, not at all."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from pixio_pretrain.data import Frames
from pixio_robot.encoder import Encoder
from pixio_robot.images import resize
from pixio_robot.tokens import Tokens

FINE = 8
"""Side of the finest grid that positions are read from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What turns pictures into tokens, and how those become the features of a probe.

    Attributes:
        see: Images uint8 [b 3 side side] to tokens.
        side: Side in pixels that frames are resized to.
        grid: Side of the grid of cells that patches are averaged over, where their place is to count.
    """

    see: Callable[[Tensor], Tokens]
    side: int
    grid: int = 4

    @classmethod
    def through(cls, encoder: Encoder, *, grid: int = 4, side: int | None = None) -> Self:
        """Look through an encoder, at its native size unless another side in pixels is given."""
        return cls(see=encoder, side=side or encoder.spec.image_size, grid=grid)

    def tokens(
        self, frames: Frames, rows: NDArray[np.int64], *, batch_size: int = 64
    ) -> Iterator[tuple[NDArray[np.int64], Tokens]]:
        """Look at whole frames, a batch at a time: their rows, and their tokens in float32 on the CPU."""
        for chunk in np.array_split(rows, -(-len(rows) // batch_size)):
            seen = self.see(torch.cat([picture(frames, row, self.side) for row in chunk]))
            yield chunk, seen.map(lambda part: part.float().cpu())

    def features(self, tokens: Tokens) -> dict[str, Tensor]:
        """Make vectors of tokens, by name, each [b f].

        "grid" keeps where things are: patches averaged over the cells of a coarse grid, side by side; "fine grid"
        averages them to 8 x 8 at most. "patches" is their mean over the whole picture, and "classes" the mean class
        token, where there are any.
        """
        found = {
            name: tokens.pool(min(side, *tokens.grid)).patches.flatten(1)
            for name, side in (("grid", self.grid), ("fine grid", FINE))
        }
        found["patches"] = tokens.patches.mean(dim=1)
        if tokens.classes.shape[1]:
            found["classes"] = tokens.classes.mean(dim=1)
        return found


def picture(frames: Frames, row: int, side: int) -> Tensor:
    """Read a frame and resize it, since those of joined sources differ in size: uint8 [1 3 side side]."""
    image = torch.from_numpy(np.array(frames.image(row))).permute(2, 0, 1)[None]
    return resize(image, (side, side))


def _pixels(images: Tensor) -> Tokens:
    """Colours in [0, 1]: 8 x 8 patches of 4 x 4 pixels."""
    patches = rearrange(images.float() / 255, "b c (h p) (w q) -> b (h w) (p q c)", p=4, q=4)
    return Tokens(patches[:, :0], patches, (8, 8))


def _nothing(images: Tensor) -> Tokens:
    return Tokens(torch.zeros(len(images), 0, 1), torch.zeros(len(images), 1, 1), (1, 1))


PIXELS = Look(see=_pixels, side=32, grid=8)
"""The frame itself, reduced to 32 x 32 pixels. As many numbers as a 4 x 4 grid of 192 features."""

NOTHING = Look(see=_nothing, side=1)
"""Eyes shut: what is left of a probe is the mean of its training answers."""
