"""Heads on feature maps: projections, and PixPro's pixel propagation module (arXiv 2011.10043, section 3.2)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixio_pretrain.objectives.cells import cosines
from pixio_robot.nn import no_autocast


def projection_head(width: int, hidden: int, out: int) -> nn.Sequential:
    """Build a head of two 1 x 1 convolutions: maps [b width h w] -> [b out h w]."""
    return nn.Sequential(nn.Conv2d(width, hidden, 1), nn.BatchNorm2d(hidden), nn.ReLU(), nn.Conv2d(hidden, out, 1))


class Propagation(nn.Module):
    """Every cell becomes a sum over all cells of its map, weighted by how alike they are.

    Cell i is to be y_i = sum over j of max(cos(x_i, x_j), 0)^gamma * v_j, its own value included, where v is the
    transformed cell, normalised to unit length. Gradients also flow through the weights, which do not sum to 1.

    Args:
        width: Channels.
        gamma: Sharpness of the weights.
        layers: Depth of the transform: 0 none, 1 a 1 x 1 convolution, 2 a projection head.
    """

    def __init__(self, width: int, *, gamma: float = 2.0, layers: int = 1) -> None:
        super().__init__()
        self.gamma = gamma
        transforms = (nn.Identity, lambda: nn.Conv2d(width, width, 1), lambda: projection_head(width, width, width))
        self.transform = transforms[layers]()

    def forward(self, x: Tensor) -> Tensor:
        """Propagate: [b d h w] -> [b d h w], float32."""
        values = self.transform(x)
        weights = cosines(x, x).clamp(min=0)  # b n n
        if self.gamma < 1:
            weights = weights + 1e-6  # the power has no slope at 0
        weights = weights**self.gamma
        with no_autocast(x.device):
            values = F.normalize(values.float().flatten(2), dim=1)  # b d n
            return (values @ weights.transpose(1, 2)).view_as(x)


@torch.no_grad()
def initialize_heads(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Draw convolutions as PyTorch does by default, from a generator; reset batch norms."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            bound = layer.weight[0].numel() ** -0.5
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            if layer.bias is not None:
                nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()
