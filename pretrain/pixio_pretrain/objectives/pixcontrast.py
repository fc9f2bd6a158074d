"""PixContrast (arXiv 2011.10043, section 3.1): tell a cell's twin in another view from that view's other cells."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pixio_pretrain.objectives.branches import PixelConfig
from pixio_pretrain.objectives.cells import find_positives, find_shared
from pixio_pretrain.objectives.pixelwise import PixelObjective, PixelOutput
from pixio_robot.errors import SettingError


@dataclass(kw_only=True)
class PixContrastConfig(PixelConfig):
    """Settings of PixContrast; the defaults are those of its paper, where it differs from PixPro.

    Attributes:
        temperature: Divides the cosines.
    """

    name: str = "pixcontrast"
    temperature: float = 0.3

    def build(self) -> "PixContrast":
        """Build the model; errors as for every objective."""
        self.check()
        if self.temperature <= 0:
            raise SettingError(f"temperature={self.temperature} must be above 0.")
        return PixContrast(self)


class PixContrast(PixelObjective):
    """Pixel-level contrastive learning.

    Args:
        config: All settings.
    """

    loss_meaning = (
        "minus the logarithm of the share of a cell's softmax that falls on the other view's cells of the same place"
    )

    def __init__(self, config: PixContrastConfig) -> None:
        super().__init__(config)
        self.initialize()

    def predict(self, projection: Tensor) -> Tensor:
        """Give the projection itself."""
        return projection

    def match(self, alike: Tensor, boxes: Tensor, others: Tensor, grid: tuple[int, int]) -> Tensor:
        """Half the contrastive loss, as both directions' are added; see ``PixelObjective``."""
        positives = find_positives(boxes, others, grid, self.config.threshold)
        shared = find_shared(boxes, others, grid)
        return contrast_loss(alike / self.config.temperature, positives, shared) / 2

    def chances(self, output: PixelOutput, boxes: Tensor) -> dict[str, Tensor]:
        """The loss if all cosines were equal."""
        nothing = [torch.zeros_like(keys) for keys in output.keys]
        return {"all cells alike": self.compare(nothing, nothing, boxes, self.match)}


def contrast_loss(logits: Tensor, positives: Tensor, shared: Tensor) -> Tensor:
    """Average -log(sum of exp over positives / sum of exp over all) over shared cells, then over images (equation 2).

    Args:
        logits: [b n n], cosines over the temperature.
        positives: bool [b n n]; all others are negatives.
        shared: bool [b n], cells that lie in both views; those without a positive are left out. An image without any
            contributes 0 to the mean.

    Returns:
        Scalar, at least 0.
    """
    counted = shared & positives.any(dim=-1)
    matched = logits.masked_fill(~positives, torch.finfo(logits.dtype).min).logsumexp(dim=-1)
    losses = torch.where(counted, logits.logsumexp(dim=-1) - matched, 0.0)  # b n
    return (losses.sum(dim=1) / counted.sum(dim=1).clamp(min=1)).mean()
