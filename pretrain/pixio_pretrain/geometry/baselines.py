"""What needs no network, or none that was trained: whatever is learnt has to beat it."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from pixio_pretrain.geometry.mono import FARTHEST, NEAREST, is_valid
from pixio_pretrain.geometry.sets import RgbdSet, Rows
from pixio_robot.errors import SettingError
from pixio_robot.geometry.cameras import plane_depth


@dataclass(frozen=True, slots=True)
class PixelMean:
    """The geometric mean depth of the training set: of all pixels, and at each pixel.

    Attributes:
        overall: Metres.
        by_pixel: Metres [h w].
    """

    overall: float
    by_pixel: Tensor

    @classmethod
    def fit(cls, frames: RgbdSet) -> Self:
        """Average a training set."""
        depth = torch.from_numpy(frames.depth).flatten(0, 1)
        valid = is_valid(depth)
        logs = torch.where(valid, depth, 1.0).log()
        overall = logs.sum() / valid.sum()
        by_pixel = torch.where(valid.any(dim=0), logs.sum(dim=0) / valid.sum(dim=0).clamp(min=1), overall)
        return cls(float(overall.exp()), by_pixel.exp())

    def constant(self, frames: RgbdSet, rows: Rows) -> Tensor:
        """The same depth everywhere [b h w]."""
        return torch.full((len(rows), *frames.size), self.overall)

    def pixels(self, frames: RgbdSet, rows: Rows) -> Tensor:
        """The same map for every frame [b h w].

        Raises:
            SettingError: The frames are of another size than those of the training set.
        """
        if tuple(self.by_pixel.shape) != frames.size:
            raise SettingError(f"Frames of {frames.size} pixels; the mean is of {tuple(self.by_pixel.shape)}.")
        return self.by_pixel.expand(len(rows), -1, -1)


def table_plane(frames: RgbdSet, rows: Rows, *, height: float = 0.0) -> Tensor:
    """Depth of a table without anything on it, as the known pose has it [b h w]; rays that miss it end far away."""
    intrinsics, cam2world = frames.calibration(rows)
    return plane_depth(intrinsics, cam2world, frames.size, height).clamp(NEAREST, FARTHEST)
