"""Several views at once: what is known of the cameras is obeyed, and only what is missing is predicted."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from pixio_robot.encoder import Encoder
from pixio_robot.errors import DataError, SettingError
from pixio_robot.geometry.cameras import check_calibration, invert, transform, unproject
from pixio_robot.geometry.depth import DepthModel
from pixio_robot.geometry.drift import REACH, DriftFinder, Landmarks, middles_of
from pixio_robot.geometry.heads import like_weight, picture
from pixio_robot.geometry.matching import SingleView, Told
from pixio_robot.geometry.storage import StoredModel
from pixio_robot.geometry.taps import shared_blocks
from pixio_robot.geometry.trunk import MultiViewSettings, Trunk
from pixio_robot.geometry.views import MultiView, assemble
from pixio_robot.nn import no_autocast
from pixio_robot.tokens import Tokens


class MultiViewModel(StoredModel):
    """A light trunk over the tokens of a frozen encoder, and heads for depth, poses, focal length and scale.

    Trained with calibrations withheld at random, one set of weights works with any part of them. Geometry follows what
    is given: rays are those of given intrinsics, points are carried by given poses, and given poses are in metres, so
    that nothing about scale is left to guess.

    Args:
        encoder: The encoder; stays as it is.
        settings: The trunk's; the defaults when absent.
        depth_head: A trained depth head on the same encoder. It measures each view by itself where poses are known, so
            that the trunk has only its errors left to find, and view 0 where other poses may have drifted. It stays as
            it is, and its settings become ``settings.alone``; if only these are given, it has fresh weights, for
            stored ones to replace.
        facts: What is known of training.

    Attributes:
        taps: The encoder's blocks that are read; the trunk reads the last one.
        trunk: What is trained.
        finder: What is trained to find drift, if there is a depth head.
        depth_head: The depth head, if there is one.

    Raises:
        SettingError: A depth head on another encoder, or settings that do not fit it.
    """

    kind = "multiview"
    settings_type = MultiViewSettings
    settings: MultiViewSettings

    def __init__(
        self,
        encoder: Encoder,
        settings: MultiViewSettings | None = None,
        *,
        depth_head: DepthModel | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(encoder, settings, facts=facts)
        if depth_head is not None:
            self.settings = dataclasses.replace(self.settings, alone=depth_head.settings)
        elif self.settings.alone is not None:
            depth_head = DepthModel(encoder, self.settings.alone)
        self.taps = shared_blocks(encoder, depth_head)
        self.trunk = Trunk(encoder.spec.width, self.settings)
        self.finder = None
        if depth_head is not None:
            self.finder = DriftFinder(encoder.spec.width, self.settings.drift, channels=depth_head.settings.channels)
        self.depth_head = depth_head
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Switch the trunk; the depth head stays as it is, batch norms included."""
        super().train(mode)
        if self.depth_head is not None:
            self.depth_head.eval()
        return self

    def forward(
        self,
        images: Tensor,
        intrinsics: Tensor | None = None,
        cam2world: Tensor | None = None,
        scale: Tensor | None = None,
        *,
        pose_prior: Tensor | None = None,
        tokens: Sequence[Tokens] | None = None,
    ) -> MultiView:
        """Look at scenes.

        Args:
            images: RGB [b v 3 h w], uint8 or float in [0, 1], at least two views of one size.
            intrinsics: [b v 3 3] in pixels of these images, if they are known.
            cam2world: Poses [b v 4 4], metres, if they are known: in any common frame; where a depth head or
                ``support_heights`` know planes or rays of the base frame, in that one.
            scale: Mean depth of view 0, metres [b], if that is known and poses are not.
            pose_prior: Poses [b v 4 4] as they once were, if cameras may have been knocked since by no more than
                ``settings.drift``. View 0's is taken as it is, the others are corrected; needs ``intrinsics``.
            tokens: Of the blocks ``taps`` [b*v ...], the views of a scene one after the other, if the images were
                encoded already.

        Raises:
            ImageError: Images that cannot be encoded.
            DataError: A single view, a calibration that cannot be, or tokens of other images.
            SettingError: A scale beside poses, which fix it already; a prior beside poses, without intrinsics, or for a
                model without a depth head; or tokens of other blocks.
        """
        self._check(images, tokens, intrinsics, cam2world, scale, pose_prior)
        intrinsics, cam2world, scale, pose_prior = (
            None if known is None else known.to(self._device) for known in (intrinsics, cam2world, scale, pose_prior)
        )
        flat, size = images.flatten(0, 1), (images.shape[-2], images.shape[-1])
        tokens = self._read(flat, tokens)
        told = Told(images.shape[1], size, intrinsics, cam2world)
        if pose_prior is not None:
            told = told._replace(cam2world=self._correct(tokens, intrinsics, pose_prior, flat), exact=False)
        pixels = self._picture(flat) if self.settings.detail else None
        dense, found, log_scale = self.trunk(tokens[-1], told, pixels, self._measure_singly(tokens, told, flat))
        return assemble(dense, found, log_scale, told, scale, self.settings)

    def correct_poses(
        self, images: Tensor, intrinsics: Tensor, pose_prior: Tensor, *, tokens: Sequence[Tokens] | None = None
    ) -> Tensor:
        """Correct poses that may have drifted, and nothing else: a check of calibration that needs no trunk.

        Args:
            images: As for ``forward``.
            intrinsics: As for ``forward``.
            pose_prior: As for ``forward``.
            tokens: As for ``forward``.

        Returns:
            The poses [b v 4 4] that ``forward`` would give.

        Raises:
            ImageError: Images that cannot be encoded.
            DataError: A single view, a calibration that cannot be, or tokens of other images.
            SettingError: Tokens of other blocks, or a model without a depth head.
        """
        self._check(images, tokens, intrinsics, pose_prior=pose_prior)
        flat = images.flatten(0, 1)
        tokens = self._read(flat, tokens)
        return self._correct(tokens, intrinsics.to(self._device), pose_prior.to(self._device), flat)

    @torch.no_grad()
    def landmarks(self, tokens: Sequence[Tokens], intrinsics: Tensor, cam2world: Tensor, images: Tensor) -> Landmarks:
        """Give what the depth head sees at the middle of each patch of images whose poses are exact.

        Args:
            tokens: Of the blocks ``taps`` [b ...].
            intrinsics: [b 3 3].
            cam2world: [b 4 4].
            images: [b 3 h w].
        """
        size, grid = (images.shape[-2], images.shape[-1]), tokens[0].grid
        single = self._measure_singly(tokens, Told(1, size, intrinsics[:, None], cam2world[:, None]), images)
        assert single is not None
        with no_autocast(single.log_depth.device):
            depth = single.log_depth[:, 0].exp().clamp(*REACH)
            points = transform(cam2world.float(), unproject(depth, intrinsics.float()))
            columns, rows = middles_of(size, grid, like=points).long().unbind(-1)
            said = single.said[:, 0, :, rows, columns].flatten(2).mT
            return Landmarks(points[:, rows, columns].flatten(1, 2), said)

    @torch.no_grad()
    def _correct(
        self, tokens: Sequence[Tokens], intrinsics: Tensor | None, pose_prior: Tensor, images: Tensor
    ) -> Tensor:
        assert self.finder is not None
        assert intrinsics is not None
        views = pose_prior.shape[1]
        told = Told(views, (images.shape[-2], images.shape[-1]), intrinsics, pose_prior, exact=False)
        first = [one.map(lambda part: part[::views]) for one in tokens]
        known = self.landmarks(first, intrinsics[:, 0], pose_prior[:, 0], images[::views])
        found = self.finder(tokens[-1], told, self._picture(images), known)[-1]
        return torch.cat([pose_prior[:, :1], invert(found.world2cam).unflatten(0, (-1, views - 1)).to(pose_prior)], 1)

    def _read(self, images: Tensor, tokens: Sequence[Tokens] | None) -> list[Tokens]:
        """Encode images, unless they were, for the trunk to read."""
        tokens = self.encoder.intermediate(images, blocks=self.taps) if tokens is None else tokens
        return like_weight(tokens, self.trunk.reference)

    @property
    def _device(self) -> torch.device:
        return self.trunk.reference.device

    def _picture(self, images: Tensor) -> Tensor:
        return picture(self.encoder, images, self._device)

    @torch.no_grad()
    def _measure_singly(self, tokens: Sequence[Tokens], told: Told, images: Tensor) -> SingleView | None:
        """Let the head for single views speak, where there is one and poses are known, roughly at least."""
        if self.depth_head is None or told.calibration is None:
            return None
        calibration = [part.flatten(0, 1) for part in told.calibration]
        numbers = self.depth_head.numbers(tokens, told.size, *calibration, images=images)
        with no_autocast(numbers.device):
            log_depth = self.depth_head.log_depth(numbers, *calibration)
            shift = math.log(told.size[1] / self.depth_head.settings.focal)  # the trunk counts focal lengths in widths
            numbers = torch.cat([numbers[:, :1] + shift, numbers[:, 1:]], dim=1)
            return SingleView(*(part.unflatten(0, (-1, told.views)) for part in (numbers, log_depth)))

    def stored(self) -> nn.ModuleDict:
        """Everything but the encoder."""
        parts: dict[str, nn.Module] = {"trunk": self.trunk}
        if self.depth_head is not None and self.finder is not None:
            parts |= {"finder": self.finder, "alone": self.depth_head.head}
        return nn.ModuleDict(parts)

    def _check(
        self,
        images: Tensor,
        tokens: Sequence[Tokens] | None,
        intrinsics: Tensor | None = None,
        cam2world: Tensor | None = None,
        scale: Tensor | None = None,
        pose_prior: Tensor | None = None,
    ) -> None:
        if images.ndim != 5:
            raise DataError(f"Views must be [b v 3 h w], all of one size, not {list(images.shape)}.")
        batch, views = images.shape[:2]
        if views < 2:
            raise DataError("A single view has no parallax: give at least two, or use a DepthModel.")
        if tokens is not None and len(tokens) != len(self.taps):
            raise SettingError(f"Tokens of {len(tokens)} blocks: give those of blocks {self.taps}, see taps.")
        if tokens is not None and len(tokens[0].patches) != batch * views:
            raise DataError(f"Tokens of {len(tokens[0].patches)} images, but {batch} x {views} views.")
        if (cam2world is not None or pose_prior is not None) and scale is not None:
            raise SettingError("Poses are in metres, so they fix the scale: give either poses or scale.")
        if pose_prior is not None and (cam2world is not None or intrinsics is None):
            raise SettingError("pose_prior stands in for cam2world where that is not exact, and needs intrinsics.")
        if pose_prior is not None and self.finder is None:
            raise SettingError("Finding drift takes the depth of view 0: train with a depth head (--depth).")
        size = (images.shape[-2], images.shape[-1])
        check_calibration([batch, views], size, intrinsics, cam2world=cam2world, pose_prior=pose_prior)
        if scale is not None and (scale.shape != (batch,) or not (scale > 0).all()):
            raise DataError(f"A scale must be above 0 metres, [{batch}] to match the images, not {scale.tolist()}.")


def load_multiview(
    folder: str | Path, *, encoder: Encoder | None = None, device: torch.device | str | None = None
) -> MultiViewModel:
    """Load what ``MultiViewModel.save_pretrained`` wrote, in evaluation mode; arguments, errors as ``load_depth``."""
    return MultiViewModel.load(folder, encoder=encoder, device=device)
