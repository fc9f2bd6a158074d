"""What an encoder says about an image: class tokens and patch tokens, as a type and never as a slice."""

from collections.abc import Callable
from typing import NamedTuple

from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from pixio_robot.errors import SettingError


class Tokens(NamedTuple):
    """Features of a batch of images. Leading dimensions may be more than one, such as [b t].

    Attributes:
        classes: Class tokens [... c d]. Pixio has 8, MAE 1, a ResNet none (c = 0).
        patches: Patch tokens [... n d], row-major over the grid.
        grid: (rows, columns) of patches; rows * columns = n.
    """

    classes: Tensor
    patches: Tensor
    grid: tuple[int, int]

    @property
    def width(self) -> int:
        """Token width d."""
        return self.patches.shape[-1]

    @property
    def summary(self) -> Tensor:
        """One vector [... d]: the mean class token, or of an encoder without any the mean patch."""
        return (self.classes if self.classes.shape[-2] else self.patches).mean(dim=-2)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Tokens":
        """Apply ``function`` to class tokens and patches alike, such as a cast or a copy to a device."""
        return Tokens(function(self.classes), function(self.patches), self.grid)

    def pool(self, side: int) -> "Tokens":
        """Average the patches over a ``side`` x ``side`` grid of equal cells; the class tokens stay.

        Where the grid does not divide evenly, cells overlap by a patch (adaptive average pooling).

        Raises:
            SettingError: If ``side`` is less than 1 or finer than the grid.
        """
        if self.grid == (side, side):
            return self
        if not 1 <= side <= min(self.grid):
            raise SettingError(
                f"Cannot pool a {self.grid[0]} x {self.grid[1]} grid of patches to {side} x {side}; "
                f"choose a side from 1 to {min(self.grid)}."
            )
        lead = self.patches.shape[:-2]
        maps = self.patches.reshape(-1, *self.patches.shape[-2:])
        maps = rearrange(maps, "b (h w) d -> b d h w", h=self.grid[0])
        pooled = rearrange(F.adaptive_avg_pool2d(maps, side), "b d h w -> b (h w) d")
        return Tokens(self.classes, pooled.reshape(*lead, *pooled.shape[1:]), (side, side))


def take(tokens: Tensor, index: Tensor) -> Tensor:
    """Pick tokens [b n d] by index [b k], each image by its own: [b k d]."""
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
