"""What views know of each other before any attention: where their rays run, and how alike they look along them."""

import math
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from pixio_robot.geometry.cameras import base_rays
from pixio_robot.geometry.sweep import plane_sweep, sweep_depths
from pixio_robot.tokens import Tokens

RAYS = 7
"""Numbers of a patch's ray in the common frame: origin, direction, and how well it is known."""

AROUND = (-0.3, -0.15, -0.08, -0.04, -0.015, 0.0, 0.015, 0.04, 0.08, 0.15, 0.3)
"""Log depths around what each view says by itself, at which views are compared."""

_CHANNELS = 32  # of what is compared
_ROUGHLY = 0.5  # how well a ray is known whose pose is known roughly


class Told(NamedTuple):
    """What is known of the cameras.

    Attributes:
        views: v.
        size: (height, width) of the images in pixels.
        intrinsics: [b v 3 3], if they are known.
        cam2world: [b v 4 4], if they are known.
        exact: Whether ``cam2world`` is; otherwise only view 0's.
    """

    views: int
    size: tuple[int, int]
    intrinsics: Tensor | None = None
    cam2world: Tensor | None = None
    exact: bool = True

    @property
    def calibration(self) -> tuple[Tensor, Tensor] | None:
        """Intrinsics and poses in float32, if both are known."""
        if self.intrinsics is None or self.cam2world is None:
            return None
        return self.intrinsics.float(), self.cam2world.float()


class SingleView(NamedTuple):
    """What a depth head says of each view by itself, with the calibration that it was told.

    Attributes:
        numbers: The head's: of depth, of confidence, of each plane [b v c h w].
        log_depth: What they mean, log metres [b v h w].
    """

    numbers: Tensor
    log_depth: Tensor

    @property
    def said(self) -> Tensor:
        """Log depth, confidence's number, and how surely planes are meant [b v c h w]."""
        confidence, planes = self.numbers[:, :, 1:2], self.numbers[:, :, 2:].sigmoid()
        return torch.cat([self.log_depth[:, :, None], confidence, planes], dim=2)

    def maps(self, size: tuple[int, int]) -> Tensor:
        """Averages over cells of what is ``said`` [b*v c rows columns]."""
        return F.interpolate(self.said.flatten(0, 1), size=size, mode="area")


class Cells(nn.Module):
    """Says of each cell of a grid at a quarter of the picture's size what it looks like, to be compared with others.

    Args:
        encoder_width: Width of the encoder's tokens.
        channels: Numbers that say it.
        detail: Whether cells see the picture; without it they know what the patches around them do.
        around: Convolutions of 3 x 3 cells beyond those that lead to them: with each, a cell sees more of its
            surroundings.
    """

    def __init__(self, encoder_width: int, channels: int, *, detail: bool, around: int = 0) -> None:
        super().__init__()
        self.patches = nn.Linear(encoder_width, channels)
        self.pixels = _quarter(channels) if detail else None
        if self.pixels is not None:
            for _ in range(around):
                self.pixels.extend([nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)])

    def describe(self, tokens: Tokens) -> Tensor:
        """Say of patches what is compared: maps [b*v c rows columns]."""
        return rearrange(self.patches(tokens.patches), "b (h w) c -> b c h w", h=tokens.grid[0]).float()

    def forward(self, described: Tensor, pixels: Tensor | None, size: tuple[int, int]) -> Tensor:
        """Give unit vectors [b*v c h/4 w/4].

        Args:
            described: What ``describe`` says.
            pixels: The normalised images [b*v 3 h w], with ``detail``.
            size: (height, width) of the images in pixels.
        """
        seen = F.interpolate(described, size=quarter_of(size), mode="bilinear", align_corners=False)
        if self.pixels is not None:
            assert pixels is not None
            seen = seen + self.pixels(pixels).float()
        return F.normalize(seen, dim=1)


class Matcher(nn.Module):
    """Compares calibrated views along their rays: patches over the whole range of depths, finer cells where it pays.

    Finer cells, a quarter of the picture's size, are compared at all depths or, if a depth head has spoken for each
    view, around what it said; then also by whether a point lies before or behind what the other view says it sees.

    Args:
        encoder_width: Width of the encoder's tokens.
        bins: Depths over the whole range.
        nearest: Metres; the first of them.
        farthest: Metres; the last of them.
        detail: Whether finer cells see the picture; without it they know what the patches around them do.
        single_channels: Numbers that a depth head says of each pixel; 0 if there is none.
    """

    def __init__(
        self, encoder_width: int, *, bins: int, nearest: float, farthest: float, detail: bool, single_channels: int
    ) -> None:
        super().__init__()
        self.cells = Cells(encoder_width, _CHANNELS, detail=detail)
        self.register_buffer("depths", sweep_depths(bins, nearest=nearest, farthest=farthest))
        self.bins = bins
        self.fine = 3 * len(AROUND) + single_channels if single_channels else bins if detail else 0
        """Channels of ``compare_cells``; 0 if there is nothing to compare."""

    def compare_patches(self, described: Tensor, told: Told) -> tuple[Tensor, Tensor]:
        """Give each patch's ray in the common frame [b v n 7], and how alike views are along it [b v n bins].

        Args:
            described: What ``cells.describe`` says.
            told: Zeros are the answer if poses are unknown.
        """
        grid, v = (described.shape[-2], described.shape[-1]), told.views
        if told.calibration is None:
            none = described.new_zeros(len(described) // v, v, grid[0] * grid[1], RAYS + self.bins)
            return none[..., :RAYS], none[..., RAYS:]
        k, poses = told.calibration
        world = base_rays(k.flatten(0, 1), poses.flatten(0, 1), told.size, grid)
        world = torch.cat([world, torch.full_like(world[:, :1], 1.0 if told.exact else _ROUGHLY)], dim=1)
        features = rearrange(F.normalize(described, dim=1), "(b v) c h w -> b v c h w", v=v)
        assert isinstance(self.depths, Tensor)
        swept = plane_sweep(features, k, poses, told.size, self.depths).alike
        return rearrange(world, "(b v) c h w -> b v (h w) c", v=v), rearrange(swept, "b v k h w -> b v (h w) k")

    def compare_cells(
        self, described: Tensor, told: Told, pixels: Tensor | None, single: SingleView | None
    ) -> Tensor | None:
        """Give ``fine`` channels at a quarter of the picture's size [b*v fine h/4 w/4]; zeros if poses are unknown.

        Args:
            described: What ``cells.describe`` says.
            told: What is known of the cameras.
            pixels: The normalised images [b*v 3 h w], with ``detail``.
            single: What a depth head says, where there is one and poses are known.
        """
        if not self.fine:
            return None
        quarter = quarter_of(told.size)
        if told.calibration is None:
            return described.new_zeros(len(described), self.fine, *quarter)
        features = rearrange(self.cells(described, pixels, told.size), "(b v) c h w -> b v c h w", v=told.views)
        assert isinstance(self.depths, Tensor)
        if single is None:
            return plane_sweep(features, *told.calibration, told.size, self.depths).alike.flatten(0, 1)
        maps = single.maps(quarter)
        surfaces = rearrange(maps[:, 0], "(b v) h w -> b v h w", v=told.views)
        depths = (surfaces[:, :, None] + surfaces.new_tensor(AROUND)[:, None, None]).exp()
        sweep = plane_sweep(features, *told.calibration, told.size, depths, surfaces)
        return torch.cat([*(part.flatten(0, 1) for part in sweep), maps], dim=1)


def quarter_of(size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of a grid at a quarter of the picture's size."""
    return math.ceil(size[0] / 4), math.ceil(size[1] / 4)


def _quarter(channels: int, width: int = 16) -> nn.Sequential:
    """Small convolutions that give a map at a quarter of a picture's size."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(width, channels, 3, stride=2, padding=1)
    )
