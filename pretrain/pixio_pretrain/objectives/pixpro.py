"""PixPro (arXiv 2011.10043, section 3.2): a cell, smoothed by its like, agrees with its twin in another view."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pixio_pretrain.objectives.branches import PixelConfig
from pixio_pretrain.objectives.cells import find_positives
from pixio_pretrain.objectives.pixelwise import PixelObjective, PixelOutput
from pixio_pretrain.objectives.propagation import Propagation, initialize_heads
from pixio_robot.errors import SettingError


@dataclass(kw_only=True)
class PixProConfig(PixelConfig):
    """Settings of PixPro; the defaults are those of its own pre-training.

    Attributes:
        gamma: Sharpness of the propagation.
        transform_layers: Layers that propagated values pass: 0, 1 or 2.
    """

    name: str = "pixpro"
    gamma: float = 2.0
    transform_layers: int = 1

    def build(self) -> "PixPro":
        """Build the model; errors as for every objective."""
        self.check()
        if self.gamma <= 0:
            raise SettingError(f"gamma={self.gamma} must be above 0.")
        if self.transform_layers not in (0, 1, 2):
            raise SettingError(f"transform_layers={self.transform_layers} must be 0, 1 or 2.")
        return PixPro(self)


class PixPro(PixelObjective):
    """Pixel-to-propagation consistency.

    Args:
        config: All settings.

    Attributes:
        propagation: The pixel propagation module.
    """

    loss_meaning = (
        "minus twice the cosine of cells that show the same place, one propagated, over both directions: -4 says that "
        "all agree, as they also would if all cells were alike"
    )

    def __init__(self, config: PixProConfig) -> None:
        super().__init__(config)
        self.propagation = Propagation(config.projection_width, gamma=config.gamma, layers=config.transform_layers)
        self.initialize()

    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights; the momentum network starts as a copy."""
        super().initialize(generator)
        initialize_heads(self.propagation, generator)

    def predict(self, projection: Tensor) -> Tensor:
        """Propagate."""
        return self.propagation(projection)

    def match(self, alike: Tensor, boxes: Tensor, others: Tensor, grid: tuple[int, int]) -> Tensor:
        """Minus twice the mean cosine of positive cells; see ``PixelObjective``."""
        return consistency_loss(alike, find_positives(boxes, others, grid, self.config.threshold))

    def chances(self, output: PixelOutput, boxes: Tensor) -> dict[str, Tensor]:
        """The loss if any cell of an image were as good as another, and if any image were: that would be collapse."""
        strangers = [keys.roll(1, dims=0) for keys in output.keys]
        return {
            "the same features, places shuffled": self.compare(output.predictions, output.keys, boxes, self._match_any),
            "the same features, images shuffled": self.compare(output.predictions, strangers, boxes, self._match_any),
        }

    def _match_any(self, alike: Tensor, boxes: Tensor, others: Tensor, grid: tuple[int, int]) -> Tensor:
        """Minus twice the mean cosine of all cells, in images that have positive ones."""
        overlap = find_positives(boxes, others, grid, self.config.threshold).any(dim=(1, 2), keepdim=True)
        return consistency_loss(alike, overlap.expand_as(alike))


def consistency_loss(alike: Tensor, positives: Tensor) -> Tensor:
    """Average cosines over the positive cells of each image, then over images, times -2 (equation 4).

    Args:
        alike: Cosines [b n n].
        positives: bool [b n n]. An image without any contributes 0 to the mean.

    Returns:
        Scalar in [-2, 2].
    """
    sums = (alike * positives).sum(dim=(1, 2))
    return -2 * (sums / (positives.sum(dim=(1, 2)) + 1e-6)).mean()
