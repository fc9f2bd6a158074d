"""Depth from patches: one linear map, shared by all places of the picture."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pixio_pretrain.probe.ridge import ReadOut, fit_best
from pixio_robot.tokens import Tokens

FARTHEST = 10.0
"""Metres; what is farther is sky, and does not count."""


class DepthReadOut:
    """Corrects the mean depth map of the training frames by what each patch says.

    A camera that stands still sees the same table at the same place, and the mean map alone is then right nearly
    everywhere. So the map is given, to every encoder alike, and the features, less their own mean at each place, are
    asked for the rest: one number per patch, interpolated bilinearly to the cells of the map. All of it in log metres,
    so that no depth is negative and near things count as much as far ones.

    Args:
        mean_map: [g h], log metres; see ``mean_log_depth``.
        mean_patches: [n d].
        read_out: Patch features, less their mean, to log metres.
    """

    def __init__(self, mean_map: Tensor, mean_patches: Tensor, read_out: ReadOut) -> None:
        self.mean_map, self.mean_patches, self.read_out = mean_map, mean_patches, read_out

    @classmethod
    def fit(
        cls,
        patches: Tensor,
        grid: tuple[int, int],
        depth: Tensor,
        episodes: NDArray[np.integer[Any]],
        *,
        counted: tuple[float, float] = (0.0, FARTHEST),
    ) -> Self:
        """Fit to training frames.

        Args:
            patches: [m n d].
            grid: Rows and columns of patches.
            depth: True maps [m g h].
            episodes: [m]; the penalty is chosen on whole ones.
            counted: Nearest and farthest depth that counts, metres.
        """
        valid = is_valid(depth, *counted)
        mean_map = mean_log_depth(depth, valid)
        missing = missing_depth(depth, valid, mean_map, grid)
        frame, place = torch.nonzero(missing.isfinite(), as_tuple=True)
        mean_patches = patches.mean(dim=0)
        x = (patches - mean_patches)[frame, place]
        return cls(mean_map, mean_patches, fit_best(x, missing[frame, place, None], episodes[frame.numpy()]))

    def __call__(self, tokens: Tokens) -> Tensor:
        """Give depth maps [b g h] in metres."""
        rest = self.read_out(tokens.patches - self.mean_patches)  # b n 1
        return (self.mean_map + spread(rest, tokens.grid, self.mean_map.shape)[:, 0]).exp()


def is_valid(depth: Tensor, nearest: float = 0.0, farthest: float = FARTHEST) -> Tensor:
    """Say where depth counts: everywhere but in the sky."""
    return (depth > 0) & (depth >= nearest) & (depth <= farthest)


def mean_log_depth(depth: Tensor, valid: Tensor) -> Tensor:
    """Average log metres over frames [m g h] at each place: [g h]; over all places where none is valid."""
    logs, count = torch.where(valid, depth, 1).log(), valid.sum(dim=0)
    return torch.where(count > 0, logs.sum(dim=0) / count.clamp(min=1), depth[valid].log().mean())


def missing_depth(depth: Tensor, valid: Tensor, mean_map: Tensor, grid: tuple[int, int]) -> Tensor:
    """Average over each patch what the mean map [g h] lacks to the depth of frames [m g h], in log metres.

    Returns:
        [m n]; NaN for a patch of which at most half is valid.
    """
    share = pool_maps(valid.float(), grid)
    logs = torch.where(valid, depth, 1).log() - mean_map
    missing = pool_maps(torch.where(valid, logs, 0), grid) / share.clamp(min=1e-6)
    return torch.where(share > 0.5, missing, torch.nan)


def depth_errors(predicted: Tensor, depth: Tensor) -> dict[str, Tensor]:
    """Measure depth maps [b g h] against the truth, each frame by itself, without any alignment.

    Returns:
        "rmse" in metres; "abs_rel", the mean of |error| / truth; and "delta1", the share of cells that are wrong by a
        factor of less than 1.25. Each [b]; NaN for a frame of nothing but sky.
    """
    valid = is_valid(depth)
    error = predicted - depth
    ratio = torch.maximum(predicted / depth, depth / predicted)
    cells = {"rmse": error.square(), "abs_rel": error.abs() / depth, "delta1": (ratio < 1.25).float()}
    means = {name: torch.where(valid, cell, 0).sum(dim=(1, 2)) / valid.sum(dim=(1, 2)) for name, cell in cells.items()}
    return means | {"rmse": means["rmse"].sqrt()}


def spread(answers: Tensor, grid: tuple[int, int], size: Sequence[int]) -> Tensor:
    """Interpolate answers of patches [b n k] bilinearly to maps of a size: [b k g h]."""
    maps = rearrange(answers, "b (h w) k -> b k h w", h=grid[0])
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)


def pool_maps(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Average maps [m g h] over the patches of a grid: [m n]."""
    return F.adaptive_avg_pool2d(maps[:, None], grid).flatten(1)
