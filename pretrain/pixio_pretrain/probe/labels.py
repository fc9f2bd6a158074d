"""What each patch shows: softmax regression, shared by all places of the picture."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from pixio_pretrain.probe.depth import pool_maps, spread
from pixio_robot.tokens import Tokens

PENALTY = 1e-4
"""Weight of the squared weights beside the mean cross-entropy: with hundreds of rows per feature, it only keeps the
optimum finite."""

MOST_STEPS = 60


class LabelReadOut:
    """Corrects the share of each class at each place of the training frames by what each patch says.

    As with depth, the map of shares is given to every encoder alike, and features, less their mean at each place, are
    asked for the rest: one score per class and patch, interpolated bilinearly. The loss is convex, and L-BFGS goes to
    its optimum, so there is no schedule to choose.

    Args:
        log_shares: [k g h]; see ``log_shares_of``.
        mean_patches: [n d].
        deviation: Standard deviation of the features less their mean [d].
        weights: [d k].
    """

    def __init__(self, log_shares: Tensor, mean_patches: Tensor, deviation: Tensor, weights: Tensor) -> None:
        self.log_shares, self.mean_patches, self.deviation, self.weights = log_shares, mean_patches, deviation, weights

    @classmethod
    def fit(cls, patches: Tensor, grid: tuple[int, int], labels: Tensor, classes: int) -> Self:
        """Fit to training frames.

        Args:
            patches: [m n d].
            grid: Rows and columns of patches.
            labels: True maps [m g h], from 0 to ``classes`` - 1.
            classes: Number of classes k.
        """
        log_shares = log_shares_of(labels, classes)
        prior = prior_of(log_shares, grid)
        targets = patch_shares(labels, grid, classes)
        mean_patches = patches.mean(dim=0)
        x = (patches - mean_patches).flatten(0, 1)
        deviation = x.std(dim=0) + 1e-6
        x, y, offset = x / deviation, targets.flatten(0, 1), prior.repeat(len(patches), 1)
        weights = x.new_zeros(x.shape[1], classes, requires_grad=True)
        solver = torch.optim.LBFGS([weights], max_iter=MOST_STEPS, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            solver.zero_grad()
            value = F.cross_entropy(torch.addmm(offset, x, weights), y) + PENALTY / 2 * weights.square().sum()
            value.backward()
            return value

        solver.step(loss)  # pyright: ignore[reportArgumentType]
        return cls(log_shares, mean_patches, deviation, weights.detach())

    def __call__(self, tokens: Tokens) -> Tensor:
        """Give maps of classes, uint8 [b g h]."""
        scores = ((tokens.patches - self.mean_patches) / self.deviation) @ self.weights
        return choose(self.log_shares, scores, tokens.grid)


def log_shares_of(labels: Tensor, classes: int) -> Tensor:
    """Log of each class's share of the frames [m g h] at each place, [k g h]; every class is seen once more."""
    counts = torch.stack([(labels == number).sum(dim=0) for number in range(classes)])
    return ((counts + 1) / (len(labels) + classes)).log()


def prior_of(log_shares: Tensor, grid: tuple[int, int]) -> Tensor:
    """Give the log share of each class in each patch, [n k], from those at each place [k g h]."""
    return pool_maps(log_shares.exp(), grid).log().T


def patch_shares(labels: Tensor, grid: tuple[int, int], classes: int) -> Tensor:
    """Give each class's share of each patch of frames [m g h]: [m n k]."""
    return torch.stack([pool_maps((labels == number).float(), grid) for number in range(classes)], dim=2)


def choose(log_shares: Tensor, scores: Tensor, grid: Sequence[int]) -> Tensor:
    """Add patches' scores [b n k] to the log shares [k g h], and take the best class: uint8 [b g h]."""
    return (log_shares + spread(scores, (grid[0], grid[1]), log_shares.shape[1:])).argmax(dim=1).byte()
