"""Training of the multi-view model, with calibrations withheld at random."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixio_pretrain.geometry.drift import knocks, pose_losses
from pixio_pretrain.geometry.losses import beyond, confidence_loss, gradient_matching, log_warp, robust, silog
from pixio_pretrain.geometry.mono import BEYOND, FARTHEST, GRADIENTS, NEAREST, is_valid
from pixio_pretrain.geometry.sets import RgbdSet, Rows
from pixio_pretrain.geometry.taps import Taps
from pixio_robot.errors import DataError
from pixio_robot.geometry.cameras import compose, invert, transform, unproject
from pixio_robot.geometry.multiview import MultiView, MultiViewModel
from pixio_robot.nn import no_autocast
from pixio_robot.tokens import Tokens

Known = Literal["all", "drifted", "intrinsics", "nothing"]
"""What the model is told of the cameras; "drifted" is intrinsics, and poses as they were before a knock, which a
model with a depth head corrects."""

CHANCES: dict[Known, float] = {"all": 0.6, "drifted": 0.2, "intrinsics": 0.1, "nothing": 0.1}
"""How often training tells it what. A robot's cameras are calibrated, so that comes most."""

POINTS, CAMERAS, MASK = 1.0, 0.1, 0.03
"""Weights of the losses beside depth's, as MapAnything has them: points, each part of a camera, mask."""


class ViewsTask:
    """The trunk of a ``MultiViewModel`` learns from pairs of views of the same moment.

    Args:
        model: Its encoder stays as it is.
        frames: The set.
        taps: What the encoder says of its frames; asked here when absent.
        twin: Show another scene in place of the second view, and always tell everything: what that reaches, the second
            view does not give.

    Attributes:
        module: The trunk.
        samples: Moments.

    Raises:
        DataError: The set has one view only.
    """

    def __init__(self, model: MultiViewModel, frames: RgbdSet, taps: Taps | None = None, *, twin: bool = False) -> None:
        if frames.views < 2:
            raise DataError(f"{frames.folder} shows every moment from one camera: render at least two.")
        self.model, self.samples, self._frames = model, len(frames) // frames.views, frames
        self.module: nn.Module = model.trunk
        self._away = self.samples // 2 * frames.views if twin else 0
        known = {"all"} if twin else set(CHANCES) if model.finder else set(CHANCES) - {"drifted"}
        self._chances = torch.tensor([chance if name in known else 0.0 for name, chance in CHANCES.items()])
        self._taps = Taps(model.encoder, frames, model.taps) if taps is None else taps

    def loss(self, rows: Rows, random: torch.Generator) -> dict[str, Tensor]:
        """Give the loss of some moments, each seen by the same two cameras, and its parts."""
        pair = torch.randperm(self._frames.views, generator=random)[:2].numpy()
        known = list(CHANCES)[int(torch.multinomial(self._chances, 1, generator=random))]
        frames = self._shown(rows[:, None] * self._frames.views + pair)
        drift = knocks(len(rows), random, *self.model.settings.drift)
        found = self._look(frames, self._tokens(frames), known, drift)
        with no_autocast(found.depth_z.device):
            return _losses(found, known, *self.truth(frames, known))

    @torch.no_grad()
    def predict(self, frames: Rows, known: Known, drift: Tensor | None = None) -> MultiView:
        """Look at frames [b v] of a moment each, with the trunk as it is.

        ``drift`` [b 4 4] is what the second camera's pose is told wrong by, where it is "drifted".
        """
        self.module.eval()
        frames = self._shown(frames)
        return self._look(frames, self._tokens(frames), known, drift)

    def _shown(self, frames: Rows) -> Rows:
        return (frames + np.array([0, self._away])) % len(self._frames)

    def _look(self, frames: Rows, tokens: Sequence[Tokens], known: Known, drift: Tensor | None) -> MultiView:
        return self.model(self._images(frames), **self._tell(frames, known, drift), tokens=tokens)

    def _tokens(self, frames: Rows) -> list[Tokens]:
        return self._taps(frames.ravel(), next(self.module.parameters()).device)

    def _images(self, frames: Rows) -> Tensor:
        return self._frames.images(frames.ravel()).unflatten(0, frames.shape)

    def _calibration(self, frames: Rows) -> tuple[Tensor, Tensor]:
        """Intrinsics [b v 3 3] and poses [b v 4 4] as they are."""
        device = next(self.module.parameters()).device
        k, poses = (part.to(device).unflatten(0, frames.shape) for part in self._frames.calibration(frames.ravel()))
        return k, poses

    def _tell(self, frames: Rows, known: Known, drift: Tensor | None) -> dict[str, Tensor]:
        """What the model is told of the cameras."""
        k, poses = self._calibration(frames)
        told: dict[str, Tensor] = {} if known == "nothing" else {"intrinsics": k}
        if known == "all":
            told["cam2world"] = poses
        elif known == "drifted":
            assert drift is not None
            told["pose_prior"] = torch.stack([poses[:, 0], compose(poses[:, 1], drift.to(poses))], dim=1)
        return told

    def truth(self, frames: Rows, known: Known) -> tuple[Tensor, Tensor, Tensor]:
        """Depth [b v h w], intrinsics, and poses in the frame that the model answers in."""
        k, poses = self._calibration(frames)
        depth = self._frames.depths(frames.ravel()).to(k.device).unflatten(0, frames.shape)
        return depth, k, poses if known in ("all", "drifted") else compose(invert(poses[:, :1]), poses)


def _losses(found: MultiView, known: Known, depth: Tensor, intrinsics: Tensor, poses: Tensor) -> dict[str, Tensor]:
    """Compare with the truth whatever the trunk predicts; what was given, or corrected, takes no loss."""
    valid = is_valid(depth).flatten(0, 1)
    truth, said = depth.flatten(0, 1), found.depth_z.flatten(0, 1).clamp(min=NEAREST / 10)
    error = torch.where(valid, said / torch.where(valid, truth, 1.0), 1.0).log().abs()
    true_points = transform(poses, unproject(depth, intrinsics)).flatten(0, 1)
    off = (log_warp(found.points_world.flatten(0, 1)) - log_warp(true_points)).norm(dim=-1)
    parts = {
        "silog": silog(said, truth, valid),
        "gradients": GRADIENTS * gradient_matching(said, truth, valid),
        "beyond": BEYOND * beyond(said, truth, farthest=FARTHEST),
        "points": POINTS * robust(off[valid]).mean(),
        "confidence": confidence_loss(found.confidence.flatten(0, 1), error, valid),
        "mask": MASK * F.binary_cross_entropy(found.mask.flatten(0, 1).clamp(1e-6, 1 - 1e-6), valid.float()),
    }
    if known == "nothing":
        ratio = found.intrinsics[..., 0, 0] / intrinsics[..., 0, 0]
        parts["focal"] = CAMERAS * robust(ratio.log()).mean()
    if known in ("intrinsics", "nothing"):
        errors = pose_losses(found.cam2world[:, 1:], poses[:, 1:])
        parts["rotation"], parts["translation"] = (CAMERAS * error for error in errors)
    return {"loss": torch.stack(list(parts.values())).sum(), **parts}
