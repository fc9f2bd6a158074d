"""Plane sweep between calibrated views: how alike are two images where a point at some depth would be seen?

At every patch of a view, points along its ray are projected into the other views, and the patch is compared with what
is seen there: where the surface is, they agree. It takes exact poses, and gives a transformer what attention alone was
slow to learn: triangulation (arXiv 1804.02505, section 3, on patches and with a dot product).
"""

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from pixio_robot.geometry.cameras import invert, project, rays, resize_intrinsics, transform


def sweep_depths(bins: int, *, nearest: float, farthest: float) -> Tensor:
    """Give depths that are evenly spaced in 1 / depth, as disparity is: [bins], metres, nearest first."""
    return 1 / torch.linspace(1 / nearest, 1 / farthest, bins)


def plane_sweep(
    features: Tensor,
    grid: tuple[int, int],
    intrinsics: Tensor,
    cam2world: Tensor,
    size: tuple[int, int],
    depths: Tensor,
) -> Tensor:
    """Compare every patch with what the other views see along its ray.

    Args:
        features: Of all patches, of unit length [b v n c].
        grid: (rows, columns) of patches, the same in all views.
        intrinsics: [b v 3 3], in pixels of images of ``size``.
        cam2world: [b v 4 4].
        size: (height, width) of the images in pixels.
        depths: Along the optical axis, metres [k].

    Returns:
        [b v k rows columns]: the mean dot product over the other views that see the point, from -1 to 1; 0 where none
        does.
    """
    maps = rearrange(features, "b v (h w) c -> b v c h w", h=grid[0])
    cells = resize_intrinsics(intrinsics, size, grid)
    world2cam, views = invert(cam2world), maps.shape[1]
    scores = []
    for view in range(views):
        along = rays(cells[:, view], grid)[:, None] * depths[:, None, None, None]  # b k h w 3
        points = transform(cam2world[:, view, None], along)
        total, count = 0.0, 0.0
        for other in range(views):
            if other == view:
                continue
            pixels, depth = project(transform(world2cam[:, other, None], points), cells[:, other, None])
            where = 2 * pixels / pixels.new_tensor([grid[1], grid[0]]) - 1  # as grid_sample counts: corners at +-1
            seen = (depth > 0) & (where.abs() <= 1).all(dim=-1)
            where = torch.where(seen[..., None], where, 2.0).flatten(1, 2)  # b k*h w 2; 2 is outside
            found = F.grid_sample(maps[:, other], where, align_corners=False, padding_mode="border")
            found = rearrange(found, "b c (k h) w -> b k c h w", h=grid[0])
            alike = (found * maps[:, view, None]).sum(dim=2)
            total, count = total + torch.where(seen, alike, 0.0), count + seen.float()
        scores.append(total / torch.as_tensor(count).clamp(min=1))
    return torch.stack(scores, dim=1)
