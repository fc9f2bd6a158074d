"""Depth that leans on planes which a calibrated camera knows: a table, a floor."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pixio_robot.geometry.cameras import plane_depth


def lean_on_planes(
    log_depth: Tensor,
    logits: Tensor,
    heights: Sequence[float],
    *,
    intrinsics: Tensor,
    cam2base: Tensor,
    farthest: float,
) -> Tensor:
    """Mix what a head says of depth by itself with the planes that it takes pixels to show.

    A pixel that is surely table gets the table's depth as exactly as the calibration knows it, which no network's own
    number reaches.

    Args:
        log_depth: What depth is where no plane is meant, log metres [... h w].
        logits: Of each plane, against 0 for none of them [... p h w].
        heights: Of the p planes z = constant in the base frame, metres.
        intrinsics: Pinhole matrices [... 3 3] in pixels.
        cam2base: Poses [... 4 4].
        farthest: Metres, beyond which a plane counts as out of sight.

    Returns:
        Log metres [... h w]: the mean of all choices, weighed by the softmax of the logits.
    """
    size = (log_depth.shape[-2], log_depth.shape[-1])
    planes = torch.stack([plane_depth(intrinsics, cam2base, size, height) for height in heights], dim=-3)
    logits = logits.masked_fill(planes > farthest, -torch.inf)
    weights = torch.cat([torch.zeros_like(log_depth).unsqueeze(-3), logits], dim=-3).softmax(dim=-3)
    choices = torch.cat([log_depth.unsqueeze(-3), planes.clamp(min=1e-3, max=farthest).log()], dim=-3)
    return (weights * choices).sum(dim=-3)
