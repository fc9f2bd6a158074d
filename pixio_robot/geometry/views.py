"""What several views say of a scene, put together from what is known and what a network says."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from pixio_robot.geometry.cameras import rays, transform, unproject
from pixio_robot.geometry.matching import Told
from pixio_robot.geometry.planes import lean_on_planes
from pixio_robot.geometry.trunk import Cameras, MultiViewSettings, pinhole
from pixio_robot.nn import no_autocast

Source = Literal["given", "predicted"]


@dataclass(frozen=True, kw_only=True, slots=True)
class MultiView:
    """What v views of a scene say. Names and conventions are MapAnything's where they mean the same.

    Attributes:
        depth_z: Metres along the optical axis [b v h w].
        points_world: Each pixel's point in the common frame, metres [b v h w 3]: the base frame if poses were given in
            it, else that of view 0.
        intrinsics: [b v 3 3].
        cam2world: [b v 4 4].
        scale: Mean depth of view 0 where its mask holds, metres [b].
        confidence: From 1 upwards [b v h w].
        mask: Probability that a pixel shows something nearer than the horizon [b v h w].
        source: Of "intrinsics", "cam2world" and "scale": whether it was given, and is returned bit for bit, or
            predicted. With given poses, the scale follows from them, and counts as given.
    """

    depth_z: Tensor
    points_world: Tensor
    intrinsics: Tensor
    cam2world: Tensor
    scale: Tensor
    confidence: Tensor
    mask: Tensor
    source: Mapping[str, Source]

    @property
    def points_cam(self) -> Tensor:
        """Each pixel's point in its camera's frame, metres [b v h w 3]."""
        return unproject(self.depth_z, self.intrinsics.float())

    @property
    def rays(self) -> Tensor:
        """Unit directions of the pixels in the camera's frame [b v h w 3]."""
        height, width = self.depth_z.shape[-2:]
        return F.normalize(rays(self.intrinsics.float(), (height, width)), dim=-1)


def assemble(
    dense: Tensor, found: Cameras, log_scale: Tensor, told: Told, scale: Tensor | None, settings: MultiViewSettings
) -> MultiView:
    """Put together what is known, or was corrected, and what the trunk says.

    Args:
        dense: The trunk's numbers [b v c h w]: of depth, mask, confidence, and each plane.
        found: Cameras that it predicts.
        log_scale: Log of the mean depth of view 0 that it predicts, metres [b].
        told: What is known of the cameras.
        scale: Mean depth of view 0, if it is known and poses are not, metres [b].
        settings: The trunk's.
    """
    with no_autocast(dense.device):
        k = pinhole(found.log_focal, told.size) if told.intrinsics is None else told.intrinsics
        metric = told.cam2world
        focal = (k[..., 0, 0] * k[..., 1, 1]).sqrt().float()
        log_depth = dense[:, :, 0] + (focal / told.size[1]).log()[..., None, None]
        if metric is not None and settings.support_heights:
            log_depth = lean_on_planes(
                log_depth,
                dense[:, :, 3:],
                settings.support_heights,
                intrinsics=k.float(),
                cam2base=metric.float(),
                farthest=settings.farthest,
            )
        depth, mask = log_depth.exp(), dense[:, :, 1].sigmoid()
        mean = (depth[:, 0] * mask[:, 0]).sum(dim=(1, 2)) / mask[:, 0].sum(dim=(1, 2)).clamp(min=1e-6)
        if metric is not None:
            poses, size_of_scene = metric, mean
        else:
            size_of_scene = log_scale.exp() if scale is None else scale
            depth = depth * (size_of_scene / mean)[:, None, None, None]
            moved = found.cam2world[..., :3, 3:] * size_of_scene[:, None, None, None]
            poses = torch.cat(
                [found.cam2world[..., :3], torch.cat([moved, found.cam2world[..., 3:, 3:]], dim=-2)], dim=-1
            )
        posed = told.cam2world is not None and told.exact
        return MultiView(
            depth_z=depth,
            points_world=transform(poses.float(), unproject(depth, k.float())),
            intrinsics=k,
            cam2world=poses,
            scale=size_of_scene,
            confidence=1 + dense[:, :, 2].exp(),
            mask=mask,
            source={
                "intrinsics": "predicted" if told.intrinsics is None else "given",
                "cam2world": "given" if posed else "predicted",
                "scale": "given" if posed or scale is not None else "predicted",
            },
        )
