"""Where a camera is, from points and where it sees them, if it is known roughly: perspective-n-point with a prior."""

import torch
from torch import Tensor
from torch.nn import functional as F

from pixio_robot.geometry.cameras import rotations, transform
from pixio_robot.nn import no_autocast

STEPS = 3
_NEAREST = 0.05  # metres; nearer points, and those behind the camera, do not count


def refine_pose(prior: Tensor, points: Tensor, seen: Tensor, weights: Tensor, spread: tuple[float, float]) -> Tensor:
    """Give the most likely pose by Gauss-Newton, differentiable in all but the prior.

    Without a single point that counts, it is the prior: it never needs a minimum of points.

    Args:
        prior: Poses world2cam [b 4 4].
        points: In the world, metres [b n 3].
        seen: Where they are seen, as (x, y) of rays with z = 1 [b n 2].
        weights: How sure that is, as inverse variances of (x, y) [b n 2].
        spread: Radians and metres; standard deviations of the prior's error along each axis of the camera.

    Returns:
        world2cam [b 4 4].
    """
    with no_autocast(prior.device):
        unit = prior.new_tensor([spread[0]] * 3 + [spread[1]] * 3)
        pose, moved = prior, prior.new_zeros(len(prior), 6)
        for _ in range(STEPS):
            there = transform(pose, points[:, None])[:, 0]
            sure = weights * (there[..., 2:] > _NEAREST)
            at, jacobian = look_at(there)
            jacobian = jacobian * unit
            weighed = jacobian * sure[..., None]
            normal = torch.einsum("bnik,bnil->bkl", weighed, jacobian) + torch.eye(6, device=prior.device)
            step = torch.linalg.solve(normal, torch.einsum("bnik,bni->bk", weighed, seen - at) - moved)
            pose, moved = _moved(pose, step * unit), moved + step
        return pose


def look_at(points: Tensor) -> tuple[Tensor, Tensor]:
    """See points [b n 3] of the camera's frame: as (x, y) of rays [b n 2], and how that changes as the points move.

    The Jacobian [b n 2 6] is that of a small turn (radians about the three axes) and a small shift (metres).
    """
    near = 1 / points[..., 2].clamp(min=_NEAREST)
    x, y = points[..., 0] * near, points[..., 1] * near
    none = torch.zeros_like(x)
    right = torch.stack([-x * y, 1 + x * x, -y, near, none, -x * near], dim=-1)
    down = torch.stack([-(1 + y * y), x * y, x, none, near, -y * near], dim=-1)
    return torch.stack([x, y], dim=-1), torch.stack([right, down], dim=-2)


def _moved(world2cam: Tensor, step: Tensor) -> Tensor:
    """Turn and shift the camera's frame."""
    by = F.pad(torch.cat([rotations(step[:, :3]), step[:, 3:, None]], dim=-1), (0, 0, 0, 1))
    by[:, 3, 3] = 1
    return by @ world2cam
