"""Where learned filters fire: what a spatial softmax (arXiv 1509.06113, section IV) can read from frozen patches."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from pixio_pretrain.data import split_episodes

FILTERS = 16
"""As many keypoints as a policy's adapter has by default."""

STEPS, RATE = 300, 1e-2
"""Of Adam, on all frames at once."""


@dataclass(frozen=True, slots=True)
class Keypoints:
    """Filters over patches, each of which says where it fires.

    Attributes:
        mean: Mean of the patches [d].
        deviation: Their standard deviation [d].
        weights: [d k], for standardised patches.
        grid: Rows and columns of patches.
    """

    mean: Tensor
    deviation: Tensor
    weights: Tensor
    grid: tuple[int, int]

    @classmethod
    def learn(
        cls,
        patches: Tensor,
        grid: tuple[int, int],
        answers: Tensor,
        episodes: NDArray[np.integer[Any]],
    ) -> Self:
        """Learn filters whose places tell the answers; the step is taken that does best on a fifth of the episodes.

        Args:
            patches: [n p d], row-major.
            grid: Their rows and columns.
            answers: [n a]; those that do not vary are left out.
            episodes: [n], the episode of each frame; whole ones are kept out.

        Raises:
            DataError: If there is only one episode.
        """
        patches = patches.float()
        mean, deviation = patches.mean(dim=(0, 1)), patches.std(dim=(0, 1)) + 1e-6
        scale = answers.std(dim=0)
        wanted = ((answers - answers.mean(dim=0)) / scale)[:, scale > 1e-6]
        generator = torch.Generator().manual_seed(0)
        with torch.enable_grad():
            weights = torch.randn(patches.shape[2], FILTERS, generator=generator) * patches.shape[2] ** -0.5
            weights.requires_grad_()
            head = nn.Linear(2 * FILTERS, wanted.shape[1])
            nn.init.normal_(head.weight, std=(2 * FILTERS) ** -0.5, generator=generator)
            nn.init.zeros_(head.bias)
            optimizer = torch.optim.Adam([weights, *head.parameters()], lr=RATE)
            inner, check = split_episodes(episodes, 0.2)
            best, kept = float("inf"), weights.detach().clone()
            z = (patches - mean) / deviation
            for _ in range(STEPS):
                answered = head(_places(z @ weights, grid))
                told = F.mse_loss(answered[check].detach(), wanted[check]).item()
                if told < best:
                    best, kept = told, weights.detach().clone()
                optimizer.zero_grad()
                F.mse_loss(answered[inner], wanted[inner]).backward()
                optimizer.step()
        return cls(mean, deviation, kept, grid)

    def __call__(self, patches: Tensor) -> Tensor:
        """Say where each filter fires in patches [n p d]: [n 2k], from -1 to 1 along rows and columns."""
        return _places(((patches.float() - self.mean) / self.deviation) @ self.weights, self.grid)


def _places(scores: Tensor, grid: tuple[int, int]) -> Tensor:
    """Expected places [n 2k] under the softmax of scores [n p k] over patches."""
    sides = [torch.linspace(-1, 1, side) for side in grid]
    positions = torch.stack(torch.meshgrid(*sides, indexing="ij"), dim=-1).flatten(0, 1)  # p 2
    return torch.einsum("npk,pc->nkc", scores.softmax(dim=1), positions).flatten(1)
