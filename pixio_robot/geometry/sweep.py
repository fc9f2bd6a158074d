"""Plane sweep between calibrated views: how alike are two images where a point at some depth would be seen?

At every cell of a view, points along its ray are projected into the other views, and the cell is compared with what
is seen there: where the surface is, they agree. It takes exact poses, and gives a transformer what attention alone was
slow to learn: triangulation (arXiv 1804.02505, section 3, on patches and with a dot product).
"""

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from pixio_robot.geometry.cameras import invert, project, rays, resize_intrinsics, transform

GAP = 0.5
"""The largest gap that is told apart, a difference of logarithms of depth."""


class Sweep(NamedTuple):
    """What the other views say of points along rays; means over those that see the point, 0 where none does.

    Attributes:
        alike: Dot product of the two cells, from -1 to 1 [b v k h w].
        gap: Log of the point's depth in the other camera less that of the surface which it is said to see there, cut
            off at ``GAP``: below 0 in front of the surface, where nothing can be, above 0 behind it [b v k h w].
        seen: Share of the other views that see the point [b v k h w].
    """

    alike: Tensor
    gap: Tensor
    seen: Tensor


def sweep_depths(bins: int, *, nearest: float, farthest: float) -> Tensor:
    """Give depths that are evenly spaced in 1 / depth, as disparity is: [bins], metres, nearest first."""
    return 1 / torch.linspace(1 / nearest, 1 / farthest, bins)


def plane_sweep(
    features: Tensor,
    intrinsics: Tensor,
    cam2world: Tensor,
    size: tuple[int, int],
    depths: Tensor,
    surfaces: Tensor | None = None,
) -> Sweep:
    """Compare every cell with what the other views see along its ray.

    Args:
        features: Of a grid of cells over each image, of unit length [b v c h w].
        intrinsics: [b v 3 3], in pixels of images of ``size``.
        cam2world: [b v 4 4].
        size: (height, width) of the images in pixels.
        depths: Along the optical axis, metres: [k], or of each cell's own [b v k h w].
        surfaces: Log depth of what each view sees, as far as it is known [b v h w]; without it, there are no gaps.
    """
    views, (h, w) = features.shape[1], features.shape[-2:]
    cells = resize_intrinsics(intrinsics, size, (h, w))
    world2cam = invert(cam2world)
    near = depths[:, None, None].expand(*features.shape[:2], -1, h, w) if depths.ndim == 1 else depths
    known = features.new_zeros(*features.shape[:2], h, w) if surfaces is None else surfaces
    maps = torch.cat([features, known[:, :, None]], dim=2)
    found = []
    for view in range(views):
        along = rays(cells[:, view], (h, w))[:, None] * near[:, view, ..., None]  # b k h w 3
        points = transform(cam2world[:, view, None], along)
        sums = features.new_zeros(3, *near[:, view].shape)
        for other in range(views):
            if other == view:
                continue
            pixels, depth = project(transform(world2cam[:, other, None], points), cells[:, other, None])
            where = 2 * pixels / pixels.new_tensor([w, h]) - 1  # as grid_sample counts: corners at +-1
            seen = (depth > 0) & (where.abs() <= 1).all(dim=-1)
            where = torch.where(seen[..., None], where, 2.0).flatten(1, 2)  # b k*h w 2; 2 is outside
            there = F.grid_sample(maps[:, other], where, align_corners=False, padding_mode="border")
            there = rearrange(there, "b c (k h) w -> b c k h w", h=h)
            alike = (there[:, :-1] * features[:, view, :, None]).sum(dim=1)
            gap = (depth.clamp(min=1e-3).log() - there[:, -1]).clamp(-GAP, GAP)
            sums = sums + torch.where(seen, torch.stack([alike, gap, torch.ones_like(gap)]), 0.0)
        count = sums[2].clamp(min=1)
        found.append(torch.stack([sums[0] / count, sums[1] / count, sums[2] / (views - 1)]))
    alike, gap, seen = torch.stack(found, dim=2)
    return Sweep(alike, gap if surfaces is not None else torch.zeros_like(gap), seen)
