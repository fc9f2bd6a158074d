"""Training of the multi-view model, with calibrations withheld at random; and what it is worth with and without."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixio_pretrain.geometry.losses import beyond, confidence_loss, gradient_matching, log_warp, robust, silog
from pixio_pretrain.geometry.mono import BEYOND, FARTHEST, GRADIENTS, NEAREST, is_valid
from pixio_pretrain.geometry.sets import RgbdSet, Rows
from pixio_pretrain.geometry.taps import Taps
from pixio_robot.errors import DataError
from pixio_robot.geometry.cameras import transform, unproject
from pixio_robot.geometry.multiview import MultiView, MultiViewModel, relative_to_first
from pixio_robot.geometry.scene_metrics import Views, pose_errors, scene_metrics
from pixio_robot.tokens import Tokens

Known = Literal["all", "intrinsics", "nothing"]
"""What the model is told of the cameras."""

CHANCES: dict[Known, float] = {"all": 0.6, "intrinsics": 0.2, "nothing": 0.2}
"""How often training tells it what. A robot's cameras are calibrated, so that comes most."""

POINTS, CAMERAS, MASK = 1.0, 0.1, 0.03
"""Weights of the losses beside depth's, as MapAnything has them: points, each part of a camera, mask."""


class ViewsTask:
    """The trunk of a ``MultiViewModel`` learns from pairs of views of the same moment.

    Args:
        model: Its encoder stays as it is.
        frames: The set.
        taps: What the encoder says of its frames; asked here when absent.

    Attributes:
        module: The trunk.
        samples: Moments.

    Raises:
        DataError: The set has one view only.
    """

    def __init__(self, model: MultiViewModel, frames: RgbdSet, taps: Taps | None = None) -> None:
        if frames.views < 2:
            raise DataError(f"{frames.folder} shows every moment from one camera: render at least two.")
        self.model, self.samples, self._frames = model, len(frames) // frames.views, frames
        self.module: nn.Module = model.trunk
        self._taps = Taps(model.encoder, frames, model.taps) if taps is None else taps

    def loss(self, rows: Rows, random: torch.Generator) -> dict[str, Tensor]:
        """Give the loss of some moments, each seen by the same two cameras, and its parts."""
        pair = torch.randperm(self._frames.views, generator=random)[:2].numpy()
        place = torch.rand((), generator=random).item()
        known = list(CHANCES)[int(np.searchsorted(np.cumsum(list(CHANCES.values())), place))]
        frames = rows[:, None] * self._frames.views + pair
        found, truth = self._look(frames, known), self.truth(frames, known)
        return _losses(found, *truth)

    @torch.no_grad()
    def predict(self, frames: Rows, known: Known) -> MultiView:
        """Look at frames [b v] of a moment each, with the trunk as it is."""
        self.module.eval()
        return self._look(frames, known)

    def _look(self, frames: Rows, known: Known) -> MultiView:
        device = next(self.module.parameters()).device
        k, poses = (part.to(device).unflatten(0, frames.shape) for part in self._frames.calibration(frames.ravel()))
        tokens: Tokens = self._taps(frames.ravel(), device)[0]
        told = (None if known == "nothing" else k, poses if known == "all" else None)
        images = None
        if self.model.settings.detail:
            images = self._frames.images(frames.ravel()).unflatten(0, frames.shape)
        return self.model.from_tokens(tokens, frames.shape[1], self._frames.size, *told, images=images)

    def truth(self, frames: Rows, known: Known) -> tuple[Tensor, Tensor, Tensor]:
        """Depth [b v h w], intrinsics, and poses in the frame that the model answers in."""
        device = next(self.module.parameters()).device
        k, poses = (part.to(device).unflatten(0, frames.shape) for part in self._frames.calibration(frames.ravel()))
        depth = self._frames.depths(frames.ravel()).to(device).unflatten(0, frames.shape)
        return depth, k, poses if known == "all" else relative_to_first(poses)


def partners(frames: RgbdSet, rows: Rows) -> Rows:
    """Pair every frame with the next view of its moment: [b 2], the frame itself first."""
    moment, view = rows // frames.views, rows % frames.views
    return np.stack([rows, moment * frames.views + (view + 1) % frames.views], axis=1)


def measure_views(model: MultiViewModel, known: Known, *, chunk: int = 32) -> Any:
    """Give a ``Measure``: the depth of every frame as the model sees it together with the next view."""
    tasks: dict[Any, ViewsTask] = {}  # what the encoder says of a set is asked once

    def measure(frames: RgbdSet, rows: Rows) -> Tensor:
        task = tasks.setdefault(frames.folder, ViewsTask(model, frames))
        parts = np.array_split(partners(frames, rows), -(-len(rows) // chunk))
        return torch.cat([task.predict(part, known).depth_z[:, 0].cpu() for part in parts])

    return measure


def evaluate_scenes(
    sets: Mapping[str, RgbdSet], model: MultiViewModel, told: Sequence[Known] = ("nothing", "intrinsics", "all")
) -> list[dict[str, Any]]:
    """Take MapAnything's six columns on pairs of views, and centimetres and degrees of the second camera's pose.

    Returns:
        A row for each set and each amount of knowledge: "set", "known", "pairs" and the means of the columns; with
        poses given, those of poses are right by construction, and say nothing.
    """
    rows = []
    for name, frames in sets.items():
        task = ViewsTask(model, frames)
        pairs = partners(frames, np.arange(0, len(frames), frames.views))
        for known in told:
            found = [_score(task, pair[None], known) for pair in pairs]
            scores = [score for score in found if score]
            means = {key: float(np.mean([score[key] for score in scores])) for key in scores[0]} if scores else {}
            rows.append({"set": name, "known": known, "pairs": len(scores), **means})
    return rows


def _score(task: ViewsTask, pair: Rows, known: Known) -> dict[str, float]:
    depth, k, poses = (part[0].cpu() for part in task.truth(pair, known))
    valid = is_valid(depth)
    if not valid.flatten(1).any(dim=1).all():
        return {}
    found = task.predict(pair, known)
    said = Views(found.points_world[0].cpu(), found.depth_z[0].cpu(), found.cam2world[0].cpu())
    turned, _ = pose_errors(said.cam2world, poses)
    moved = (relative_to_first(found.cam2world.cpu())[0, 1, :3, 3] - relative_to_first(poses[None])[0, 1, :3, 3]).norm()
    truth = Views(transform(poses, unproject(depth, k)), depth, poses)
    return scene_metrics(said, truth, valid) | {"rotation_deg": float(turned[0]), "translation_cm": 100 * float(moved)}


def _losses(found: MultiView, depth: Tensor, intrinsics: Tensor, poses: Tensor) -> dict[str, Tensor]:
    """Compare with the truth whatever was predicted; what was given takes no loss."""
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
    if found.source["intrinsics"] == "predicted":
        ratio = found.intrinsics[..., 0, 0] / intrinsics[..., 0, 0]
        parts["focal"] = CAMERAS * robust(ratio.log()).mean()
    if found.source["cam2world"] == "predicted":
        wrong = found.cam2world[:, 1:] - poses[:, 1:]
        parts["rotation"] = CAMERAS * robust(wrong[..., :3, :3].flatten(-2).norm(dim=-1)).mean()
        parts["translation"] = CAMERAS * robust(wrong[..., :3, 3].norm(dim=-1)).mean()
    return {"loss": torch.stack(list(parts.values())).sum(), **parts}
