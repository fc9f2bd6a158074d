"""Pinhole cameras: from pixels to rays and points, and back; what cropping does to a calibration; poses.

OpenCV axes (x right, y down, z forward), pixel centres at +0.5, metres, poses as cam2world [4 4]. Everything takes any
number of leading dimensions, in float32 or float64, also under autocast (a pose in bfloat16 is off by millimetres), and
stays differentiable.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pixio_robot.errors import DataError
from pixio_robot.nn import no_autocast

FIELD_OF_VIEW = (1.0, 170.0)
"""Degrees; what a pinhole camera's field of view may be."""

_RIGID = 1e-3  # how far R^T R may be from 1: calibrations are often printed with four digits


def check_intrinsics(intrinsics: Tensor, size: tuple[int, int]) -> None:
    """Let pinhole matrices pass only if they can belong to images of this size.

    Args:
        intrinsics: [... 3 3], in pixels.
        size: (height, width) of the images in pixels.

    Raises:
        DataError: Another shape, numbers that are not finite, a singular matrix, skew, or a field of view that no
            pinhole camera has.
    """
    if intrinsics.ndim < 2 or intrinsics.shape[-2:] != (3, 3):
        raise DataError(f"Intrinsics must be [... 3 3], not {list(intrinsics.shape)}.")
    values = intrinsics.detach().double()
    bottom = values.new_tensor([0.0, 0.0, 1.0])
    if not values.isfinite().all():
        raise DataError("Intrinsics hold NaN or infinity.")
    if (values[..., 0, 0] <= 0).any() or (values[..., 1, 1] <= 0).any():
        raise DataError(
            f"Intrinsics are singular or mirrored: focal lengths fx = {values[..., 0, 0].min():g} and fy = "
            f"{values[..., 1, 1].min():g} pixels must be above 0."
        )
    if not torch.allclose(values[..., 2, :], bottom.expand_as(values[..., 2, :])) or values[..., 1, 0].any():
        hint = " It looks transposed." if values[..., :2, 2].abs().max() < 1e-9 else ""
        raise DataError(f"Intrinsics must read [[fx, 0, cx], [0, fy, cy], [0, 0, 1]].{hint}")
    if values[..., 0, 1].abs().max() > 1e-6 * values[..., 0, 0].max():
        raise DataError("Intrinsics with skew: rectify the images first; rays here assume right angles.")
    for side, pixels, focal in (("wide", size[1], values[..., 0, 0]), ("high", size[0], values[..., 1, 1])):
        for length in (focal.min().item(), focal.max().item()):
            angle = 2 * math.degrees(math.atan(pixels / 2 / length))
            if not FIELD_OF_VIEW[0] <= angle <= FIELD_OF_VIEW[1]:
                raise DataError(
                    f"A focal length of {length:g} pixels sees {angle:.3g} degrees of an image {pixels} pixels {side}; "
                    f"{FIELD_OF_VIEW[0]:g} to {FIELD_OF_VIEW[1]:g} are possible. Are the intrinsics those of images of "
                    "this size, in pixels? resize_intrinsics() carries them from another size."
                )


def check_poses(poses: Tensor) -> None:
    """Let poses pass only if they are rigid.

    Args:
        poses: [... 4 4].

    Raises:
        DataError: Another shape, numbers that are not finite, or a rotation that is none.
    """
    if poses.ndim < 2 or poses.shape[-2:] != (4, 4):
        raise DataError(f"Poses must be [... 4 4], not {list(poses.shape)}.")
    values = poses.detach().double()
    if not values.isfinite().all():
        raise DataError("A pose holds NaN or infinity.")
    bottom = values.new_tensor([0.0, 0.0, 0.0, 1.0])
    if not torch.allclose(values[..., 3, :], bottom.expand_as(values[..., 3, :])):
        raise DataError("The last row of a pose must be 0 0 0 1. Is it transposed, or a 3 x 4 matrix with a row added?")
    rotation = values[..., :3, :3]
    error = (rotation.mT @ rotation - torch.eye(3, dtype=values.dtype, device=values.device)).abs().max().item()
    if error > _RIGID:
        raise DataError(
            f"A pose is no rotation: its axes are off unit length or right angles by {error:.3g}, and {_RIGID:g} is "
            "allowed. A scale does not belong into a pose."
        )
    if (torch.linalg.det(rotation) < 0).any():
        raise DataError(
            "A pose mirrors space (determinant -1): turn two axes round, never one; OpenGL's differ in two."
        )


def check_calibration(
    lead: Sequence[int], size: tuple[int, int], intrinsics: Tensor | None, **poses: Tensor | None
) -> None:
    """Let a calibration pass only if it can be that of some images; what is not known is None.

    Args:
        lead: Shape of the images before [3 h w], such as [b] or [b v].
        size: (height, width) of the images in pixels.
        intrinsics: [*lead 3 3], in pixels of these images.
        **poses: [*lead 4 4], by the caller's names.

    Raises:
        DataError: Another shape, or what ``check_intrinsics`` and ``check_poses`` refuse.
    """
    for name, side, value in (("intrinsics", 3, intrinsics), *((name, 4, value) for name, value in poses.items())):
        if value is not None and list(value.shape) != [*lead, side, side]:
            raise DataError(f"{name} must be {[*lead, side, side]} to match the images, not {list(value.shape)}.")
    if intrinsics is not None:
        check_intrinsics(intrinsics, size)
    for value in poses.values():
        if value is not None:
            check_poses(value)


def invert(poses: Tensor) -> Tensor:
    """Invert rigid poses [... 4 4]."""
    rotation = poses[..., :3, :3].mT
    with no_autocast(poses.device):
        moved = -(rotation @ poses[..., :3, 3:])
    return torch.cat([torch.cat([rotation, moved], dim=-1), poses[..., 3:, :]], dim=-2)


def compose(first: Tensor, second: Tensor) -> Tensor:
    """Chain poses [... 4 4]: what ``second`` leads to is carried on by ``first``."""
    with no_autocast(first.device):
        return first @ second


def rotations(axis_angle: Tensor) -> Tensor:
    """Make rotations [... 3 3] of axes times angles in radians [... 3]."""
    x, y, z = axis_angle.unbind(-1)
    none = torch.zeros_like(x)
    skew = torch.stack([none, -z, y, z, none, -x, -y, x, none], dim=-1)
    return torch.linalg.matrix_exp(skew.unflatten(-1, (3, 3)))


def transform(poses: Tensor, points: Tensor) -> Tensor:
    """Carry points [... h w 3] into the frame that poses [... 4 4] lead to."""
    with no_autocast(points.device):
        return points @ poses[..., None, :3, :3].mT + poses[..., None, None, :3, 3]


def pixel_centers(size: tuple[int, int], *, like: Tensor) -> Tensor:
    """Give the coordinates (x, y) of all pixel centres, [h w 2], with the type and device of ``like``."""
    y = torch.arange(size[0], dtype=like.dtype, device=like.device) + 0.5
    x = torch.arange(size[1], dtype=like.dtype, device=like.device) + 0.5
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def rays(intrinsics: Tensor, size: tuple[int, int]) -> Tensor:
    """Give the direction of every pixel in the camera's frame, [... h w 3], with z = 1: times depth it is the point."""
    focal = torch.stack([intrinsics[..., 0, 0], intrinsics[..., 1, 1]], dim=-1)[..., None, None, :]
    center = intrinsics[..., :2, 2][..., None, None, :]
    xy = (pixel_centers(size, like=intrinsics) - center) / focal
    return torch.cat([xy, torch.ones_like(xy[..., :1])], dim=-1)


def unproject(depth: Tensor, intrinsics: Tensor) -> Tensor:
    """Turn depth [... h w], metres along the optical axis, into points [... h w 3] in the camera's frame."""
    return rays(intrinsics, (depth.shape[-2], depth.shape[-1])) * depth[..., None]


def project(points: Tensor, intrinsics: Tensor) -> tuple[Tensor, Tensor]:
    """Find where points [... h w 3] in the camera's frame are seen: pixels (x, y) [... h w 2], and depth [... h w].

    Pixels of points at or behind the camera mean nothing; their depth is not above 0.
    """
    depth = points[..., 2]
    safe = torch.where(depth.abs() > 1e-9, depth, 1e-9)[..., None]
    focal = torch.stack([intrinsics[..., 0, 0], intrinsics[..., 1, 1]], dim=-1)[..., None, None, :]
    return points[..., :2] / safe * focal + intrinsics[..., :2, 2][..., None, None, :], depth


def resize_intrinsics(intrinsics: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Carry intrinsics [... 3 3] along when images of ``old`` (height, width) are resized to ``new``.

    With pixel centres at +0.5 all of the first two rows scale alike.
    """
    scale = intrinsics.new_tensor([new[1] / old[1], new[0] / old[0], 1.0])
    return intrinsics * scale[:, None]


def crop_intrinsics(intrinsics: Tensor, *, top: float, left: float) -> Tensor:
    """Carry intrinsics [... 3 3] along when ``top`` rows and ``left`` columns of the images are cut off."""
    moved = intrinsics.clone()
    moved[..., 0, 2] -= left
    moved[..., 1, 2] -= top
    return moved


def base_rays(intrinsics: Tensor, cam2base: Tensor, size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Give the ray through the centre of each cell of a grid over the image, in the base frame.

    Args:
        intrinsics: [b 3 3], in pixels of images of ``size``.
        cam2base: [b 4 4].
        size: (height, width) in pixels.
        grid: (rows, columns).

    Returns:
        [b 6 rows columns]: origin in metres, then the unit direction.
    """
    cells = rays(resize_intrinsics(intrinsics, size, grid), grid)  # a cell is a pixel of the image at the grid's size
    with no_autocast(cells.device):
        directions = torch.nn.functional.normalize(cells @ cam2base[:, None, :3, :3].mT, dim=-1)
    origins = cam2base[:, None, None, :3, 3].expand_as(directions)
    return torch.cat([origins, directions], dim=-1).permute(0, 3, 1, 2)


def plane_depth(intrinsics: Tensor, cam2base: Tensor, size: tuple[int, int], height: float = 0.0) -> Tensor:
    """Give the depth at which every pixel's ray meets the plane z = ``height`` of the base frame, metres [... h w].

    Infinite where it never does: at and above the horizon.
    """
    with no_autocast(cam2base.device):
        directions = rays(intrinsics, size) @ cam2base[..., None, :3, :3].mT
    falling, above = directions[..., 2], height - cam2base[..., None, None, 2, 3]
    depth = above / torch.where(falling.abs() > 1e-9, falling, 1e-9)
    return torch.where((depth > 0) & (falling.abs() > 1e-9), depth, torch.inf)
