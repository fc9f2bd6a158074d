"""Several views at once: what is known of the cameras is obeyed, and only what is missing is predicted."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixio_robot.encoder import Encoder
from pixio_robot.errors import CheckpointError, DataError, SettingError
from pixio_robot.geometry.cameras import check_intrinsics, check_poses, compose, invert, rays, transform, unproject
from pixio_robot.geometry.depth import DepthModel, shared_blocks
from pixio_robot.geometry.heads import picture
from pixio_robot.geometry.matching import Alone, Told
from pixio_robot.geometry.planes import lean_on_planes
from pixio_robot.geometry.storage import fill, read_folder, write_folder
from pixio_robot.geometry.trunk import Cameras, MultiViewSettings, Trunk, pinhole
from pixio_robot.nn import no_autocast
from pixio_robot.tokens import Tokens

Source = Literal["given", "predicted"]


@dataclass(frozen=True, kw_only=True, slots=True)
class MultiView:
    """What v views of a scene say. Names and conventions are MapAnything's where they mean the same.

    Attributes:
        depth_z: Metres along the optical axis [b v h w].
        points_cam: Each pixel's point in its camera's frame, metres [b v h w 3].
        points_world: The same in the common frame [b v h w 3]: the base frame if poses were given in it, else that of
            view 0.
        rays: Unit directions in the camera's frame [b v h w 3].
        intrinsics: [b v 3 3].
        cam2world: [b v 4 4].
        scale: Mean depth of view 0 where its mask holds, metres [b].
        confidence: From 1 upwards [b v h w].
        mask: Probability that a pixel shows something nearer than the horizon [b v h w].
        source: Of "intrinsics", "cam2world" and "scale": whether it was given, and is returned bit for bit, or
            predicted. With given poses, the scale follows from them, and counts as given.
    """

    depth_z: Tensor
    points_cam: Tensor
    points_world: Tensor
    rays: Tensor
    intrinsics: Tensor
    cam2world: Tensor
    scale: Tensor
    confidence: Tensor
    mask: Tensor
    source: Mapping[str, Source]

    def view(self, number: int) -> dict[str, Tensor]:
        """Everything that is said of one view, without the dimension of views."""
        fields = (field.name for field in dataclasses.fields(self) if field.name not in ("scale", "source"))
        return {name: getattr(self, name)[:, number] for name in fields}


class MultiViewModel(nn.Module):
    """A light trunk over the tokens of a frozen encoder, and heads for depth, poses, focal length and scale.

    Trained with calibrations withheld at random, one set of weights works with any part of them. Geometry follows what
    is given: rays are those of given intrinsics, points are carried by given poses, and given poses are in metres, so
    that nothing about scale is left to guess.

    Args:
        encoder: The encoder; stays as it is.
        settings: The trunk's; the defaults when absent.
        alone: A trained depth head on the same encoder. It measures each view by itself where poses are known, so that
            the trunk has only its errors left to find. Its settings become ``settings.alone``.
        encoder_name: What ``load_encoder`` reads to get this encoder; its own name when absent.
        facts: What is known of training.

    Attributes:
        taps: The encoder's blocks that are read; the trunk reads the last one.
        trunk: What is trained.
        alone: The depth head, if there is one.

    Raises:
        SettingError: A depth head on another encoder, or settings that do not fit it.
    """

    def __init__(
        self,
        encoder: Encoder,
        settings: MultiViewSettings | None = None,
        *,
        alone: DepthModel | None = None,
        encoder_name: str | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.settings = settings or MultiViewSettings()
        if alone is not None:
            self.settings = dataclasses.replace(self.settings, alone=alone.settings)
        elif self.settings.alone is not None:
            alone = DepthModel(encoder, self.settings.alone)
        self.taps = shared_blocks(encoder, alone)
        self.encoder_name = encoder_name or str(encoder.provenance.get("name", ""))
        self.facts = dict(facts or {})
        self.trunk = Trunk(encoder.spec.width, self.settings)
        self.alone = alone

    @property
    def looks(self) -> bool:
        """Whether ``from_tokens`` wants the images, too."""
        return self.settings.detail or (self.alone is not None and self.alone.settings.detail)

    def forward(
        self,
        images: Tensor,
        intrinsics: Tensor | None = None,
        cam2world: Tensor | None = None,
        scale: Tensor | None = None,
        *,
        pose_prior: Tensor | None = None,
    ) -> MultiView:
        """Look at scenes.

        Args:
            images: RGB [b v 3 h w], uint8 or float in [0, 1], at least two views of one size.
            intrinsics: [b v 3 3] in pixels of these images, if they are known.
            cam2world: Poses [b v 4 4], metres, in any common frame, if they are known.
            scale: Mean depth of view 0, metres [b], if that is known and poses are not.
            pose_prior: Poses [b v 4 4] as they once were, if cameras may have been knocked since by some degrees and
                centimetres. View 0's is taken as it is, the others are corrected; needs ``intrinsics``.

        Raises:
            ImageError: Images that cannot be encoded.
            DataError: A single view, or a calibration that cannot be.
            SettingError: A scale beside poses, which fix it already; or a prior beside poses, or without intrinsics.
        """
        if images.ndim != 5:
            raise DataError(f"Views must be [b v 3 h w], all of one size, not {list(images.shape)}.")
        tokens = self.encoder.intermediate(images.flatten(0, 1), blocks=self.taps)
        size = (images.shape[-2], images.shape[-1])
        known = (intrinsics, cam2world, scale)
        return self.from_tokens(tokens, images.shape[1], size, *known, pose_prior=pose_prior, images=images)

    def from_tokens(
        self,
        tokens: Sequence[Tokens],
        views: int,
        size: tuple[int, int],
        intrinsics: Tensor | None = None,
        cam2world: Tensor | None = None,
        scale: Tensor | None = None,
        *,
        pose_prior: Tensor | None = None,
        images: Tensor | None = None,
    ) -> MultiView:
        """Look at scenes that were encoded already.

        Args:
            tokens: Of the blocks ``taps`` [b*v ...], the views of a scene one after the other.
            views: v.
            size: (height, width) of the images in pixels.
            intrinsics: As for ``forward``.
            cam2world: As for ``forward``.
            scale: As for ``forward``.
            pose_prior: As for ``forward``.
            images: As for ``forward``; without ``detail`` nobody looks at them.

        Raises:
            DataError: A single view, or a calibration that cannot be.
            SettingError: As for ``forward``, or images that are missing.
        """
        self._check(len(tokens[0].patches), views, size, intrinsics, cam2world, scale, pose_prior)
        flat = None if images is None else images.flatten(0, 1)
        pixels = picture(self.encoder, flat, self.trunk.reference.device) if self.settings.detail else None
        source: dict[str, Source] = {
            "intrinsics": "predicted" if intrinsics is None else "given",
            "cam2world": "predicted" if cam2world is None else "given",
            "scale": "predicted" if cam2world is None and scale is None else "given",
        }
        poses, exact = (cam2world, True) if pose_prior is None else (pose_prior, False)
        told = Told(views, size, intrinsics, poses, exact)
        dense, found, log_scale = self.trunk(tokens[-1], told, pixels, self._measure_alone(tokens, told, flat))
        with no_autocast(dense.device):
            metric = cam2world if pose_prior is None else found.cam2world
            return self._assemble(dense, found, log_scale, size, intrinsics, metric, scale, source)

    def correct_poses(
        self,
        tokens: Sequence[Tokens],
        views: int,
        size: tuple[int, int],
        intrinsics: Tensor,
        pose_prior: Tensor,
        *,
        images: Tensor | None = None,
    ) -> Tensor:
        """Give the poses [b v 4 4] alone that ``from_tokens`` would give: a check of calibration without dense heads.

        Arguments and errors are those of ``from_tokens``.
        """
        self._check(len(tokens[0].patches), views, size, intrinsics, None, None, pose_prior)
        told = Told(views, size, intrinsics, pose_prior, exact=False)
        flat = None if images is None else images.flatten(0, 1)
        return self.trunk.look(tokens[-1], told, self._measure_alone(tokens, told, flat)).cameras.cam2world

    @torch.no_grad()
    def _measure_alone(self, tokens: Sequence[Tokens], told: Told, images: Tensor | None) -> Alone | None:
        """Let the head for single views speak, where there is one and poses are known, roughly at least."""
        if self.alone is None or told.calibration is None:
            return None
        calibration = [part.flatten(0, 1) for part in told.calibration]
        numbers = self.alone.numbers(tokens, told.size, *calibration, images=images)
        with no_autocast(numbers.device):
            log_depth = self.alone.decode(numbers, *calibration)
            numbers = torch.cat(
                [numbers[:, :1] + math.log(told.size[1] / self.alone.settings.focal), numbers[:, 1:]], 1
            )
            return Alone(*(part.unflatten(0, (-1, told.views)) for part in (numbers, log_depth)))

    def _stored(self) -> nn.ModuleDict:
        """Everything but the encoder."""
        return nn.ModuleDict({"trunk": self.trunk} | ({"alone": self.alone.head} if self.alone else {}))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the trunk, its settings and its encoder's name and hash; ``load_multiview`` reads it."""
        write_folder(
            Path(folder),
            kind="multiview",
            module=self._stored(),
            settings=dataclasses.asdict(self.settings),
            encoder=self.encoder,
            encoder_name=self.encoder_name,
            facts=self.facts,
        )

    def _check(
        self,
        images: int,
        views: int,
        size: tuple[int, int],
        intrinsics: Tensor | None,
        cam2world: Tensor | None,
        scale: Tensor | None,
        pose_prior: Tensor | None,
    ) -> None:
        if views < 2:
            raise DataError("A single view has no parallax: give at least two, or use a DepthModel.")
        if (cam2world is not None or pose_prior is not None) and scale is not None:
            raise SettingError("Poses are in metres, so they fix the scale: give either poses or scale.")
        if pose_prior is not None and (cam2world is not None or intrinsics is None):
            raise SettingError("pose_prior stands in for cam2world where that is not exact, and needs intrinsics.")
        batch = images // views
        for name, value, shape in (
            ("intrinsics", intrinsics, (batch, views, 3, 3)),
            ("cam2world", cam2world, (batch, views, 4, 4)),
            ("scale", scale, (batch,)),
            ("pose_prior", pose_prior, (batch, views, 4, 4)),
        ):
            if value is not None and tuple(value.shape) != shape:
                raise DataError(f"{name} must be {list(shape)}, as there are images, not {list(value.shape)}.")
        if intrinsics is not None:
            check_intrinsics(intrinsics, size)
        for poses in (cam2world, pose_prior):
            if poses is not None:
                check_poses(poses)
        if scale is not None and not (scale > 0).all():
            raise DataError("A scale must be above 0 metres.")

    def _assemble(
        self,
        dense: Tensor,
        found: Cameras,
        log_scale: Tensor,
        size: tuple[int, int],
        intrinsics: Tensor | None,
        cam2world: Tensor | None,
        scale: Tensor | None,
        source: Mapping[str, Source],
    ) -> MultiView:
        """Put together what is known, or corrected, and what the trunk says [b v c h w]."""
        settings = self.settings
        k = pinhole(found.log_focal, size) if intrinsics is None else intrinsics
        mask, confidence = dense[:, :, 1].sigmoid(), 1 + dense[:, :, 2].exp()
        focal = (k[..., 0, 0] * k[..., 1, 1]).sqrt().float()
        log_depth = dense[:, :, 0] + (focal / size[1]).log()[..., None, None]
        if cam2world is not None and settings.support_heights:
            log_depth = lean_on_planes(
                log_depth,
                dense[:, :, 3:],
                settings.support_heights,
                intrinsics=k.float(),
                cam2base=cam2world.float(),
                farthest=settings.farthest,
            )
        depth = log_depth.exp()
        mean = (depth[:, 0] * mask[:, 0]).sum(dim=(1, 2)) / mask[:, 0].sum(dim=(1, 2)).clamp(min=1e-6)
        poses = found.cam2world
        if cam2world is not None:
            poses, size_of_scene = cam2world, mean
        else:
            size_of_scene = log_scale.exp() if scale is None else scale
            depth = depth * (size_of_scene / mean)[:, None, None, None]
            moved = poses[..., :3, 3:] * size_of_scene[:, None, None, None]
            poses = torch.cat([torch.cat([poses[..., :3, :3], moved], dim=-1), poses[..., 3:, :]], dim=-2)
        points = unproject(depth, k.float())
        return MultiView(
            depth_z=depth,
            points_cam=points,
            points_world=transform(poses.float(), points),
            rays=F.normalize(rays(k.float(), size), dim=-1),
            intrinsics=k,
            cam2world=poses,
            scale=size_of_scene,
            confidence=confidence,
            mask=mask,
            source=source,
        )


def relative_to_first(cam2world: Tensor) -> Tensor:
    """Carry poses [b v 4 4] into the frame of view 0, in which poses are predicted."""
    return compose(invert(cam2world[:, :1]), cam2world)


def load_multiview(
    folder: str | Path, *, encoder: Encoder | None = None, device: torch.device | str | None = None
) -> MultiViewModel:
    """Load what ``MultiViewModel.save_pretrained`` wrote, in evaluation mode; arguments, errors as ``load_depth``."""
    stored = read_folder(folder, kind="multiview", encoder=encoder)
    try:
        settings = MultiViewSettings(**stored.settings)
    except TypeError as error:
        raise CheckpointError(f"{folder} has settings that this version does not know: {error}") from error
    model = MultiViewModel(stored.encoder, settings, encoder_name=stored.encoder_name, facts=stored.facts)
    fill(model._stored(), stored.state, folder)
    return model.to(device or next(stored.encoder.parameters()).device).eval()
