"""Training of the multi-view model, with calibrations withheld at random; and what it is worth with and without."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixio_pretrain.geometry.evaluation import summarize
from pixio_pretrain.geometry.losses import beyond, confidence_loss, gradient_matching, log_warp, robust, silog
from pixio_pretrain.geometry.mono import BEYOND, FARTHEST, GRADIENTS, NEAREST, is_valid
from pixio_pretrain.geometry.sets import RgbdSet, Rows, once_per_set
from pixio_pretrain.geometry.taps import Taps
from pixio_robot.errors import DataError
from pixio_robot.geometry.cameras import compose, transform, unproject
from pixio_robot.geometry.multiview import MultiView, MultiViewModel, relative_to_first
from pixio_robot.geometry.scene_metrics import Views, auc, pose_errors, scene_metrics
from pixio_robot.nn import no_autocast
from pixio_robot.tokens import Tokens

Known = Literal["all", "drifted", "intrinsics", "nothing"]
"""What the model is told of the cameras; "drifted" is intrinsics, and poses as they were before a knock."""

CHANCES: dict[Known, float] = {"all": 0.6, "drifted": 0.2, "intrinsics": 0.1, "nothing": 0.1}
"""How often training tells it what. A robot's cameras are calibrated, so that comes most."""

TOLD: dict[Known, str] = {
    "nothing": "nothing known",
    "intrinsics": "intrinsics alone",
    "all": "calibrated",
    "drifted": "drift corrected",
}
"""Names for the table."""

PAIRS_SHOWN = ("points_rel", "depth_rel", "points_tau", "scale_rel", "pose_auc5", "pose_auc30")
PAIRS_SHOWN += ("rotation_deg", "translation_cm")
"""Columns of the table of pairs."""

KNOCK = 15.0, 0.05
"""Degrees and metres that cameras drift at most."""

POINTS, CAMERAS, MASK = 1.0, 0.1, 0.03
"""Weights of the losses beside depth's, as MapAnything has them: points, each part of a camera, mask."""

DRIFT = 0.2
"""Weight of the correction of drifted poses, which every step learns beside whatever else it does: it needs no dense
head of the trunk's."""


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
        drift, tokens = knocks(len(rows), random), self._tokens(frames)
        found = self._look(frames, tokens, known, drift)
        truth, said = self.truth(frames, known), found.cam2world
        if known != "drifted":
            said = self.model.correct_poses(self._images(frames), **self._tell(frames, "drifted", drift), tokens=tokens)
        with no_autocast(said.device):
            parts = _losses(found, *truth)
            parts["drift"] = DRIFT * torch.stack(list(_pose_losses(said, self._calibration(frames)[1]))).sum()
            return {**parts, "loss": parts["loss"] + parts["drift"]}

    @torch.no_grad()
    def predict(self, frames: Rows, known: Known, drift: Tensor | None = None) -> MultiView:
        """Look at frames [b v] of a moment each, with the trunk as it is.

        ``drift`` [b 4 4] is what the second camera's pose is told wrong by, where it is "drifted".
        """
        self.module.eval()
        return self._look(frames, self._tokens(frames), known, drift)

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
        return depth, k, poses if known in ("all", "drifted") else relative_to_first(poses)


def knocks(count: int, random: torch.Generator) -> Tensor:
    """Draw what cameras are knocked by, up to ``KNOCK``: angle and way are even, axes anyhow. [count 4 4]."""
    axes, ways = F.normalize(torch.randn(2, count, 3, generator=random), dim=-1)
    angles, lengths = torch.rand(2, count, 1, generator=random)
    turns = torch.linalg.cross(torch.eye(3)[None], (axes * torch.deg2rad(KNOCK[0] * angles))[:, None])
    drift = torch.eye(4).repeat(count, 1, 1)
    drift[:, :3, :3] = torch.linalg.matrix_exp(turns)
    drift[:, :3, 3] = KNOCK[1] * lengths * ways
    return drift


def partners(frames: RgbdSet, rows: Rows) -> Rows:
    """Pair every frame with the next view of its moment: [b 2], the frame itself first."""
    moment, view = rows // frames.views, rows % frames.views
    return np.stack([rows, moment * frames.views + (view + 1) % frames.views], axis=1)


def measure_views(model: MultiViewModel, known: Known, *, chunk: int = 32) -> Any:
    """Give a ``Measure``: the depth of every frame as the model sees it together with the next view."""
    task_of = once_per_set(lambda frames: ViewsTask(model, frames))

    def measure(frames: RgbdSet, rows: Rows) -> Tensor:
        task = task_of(frames)
        parts = np.array_split(partners(frames, rows), -(-len(rows) // chunk))
        return torch.cat([task.predict(part, known).depth_z[:, 0].cpu() for part in parts])

    return measure


def evaluate_scenes(
    sets: Mapping[str, RgbdSet],
    model: MultiViewModel,
    told: Sequence[Known] = ("nothing", "intrinsics", "all", "drifted"),
) -> list[dict[str, Any]]:
    """Take MapAnything's six columns on pairs of views, and centimetres and degrees of the second camera's pose.

    Returns:
        Rows as ``evaluate`` gives them, for each set and each amount of knowledge; with poses given, columns of poses
        are right by construction, and say nothing. Where cameras drifted, a further row has the poses as they were
        told: what assuming no drift is worth.
    """
    rows = []
    for name, frames in sets.items():
        task = ViewsTask(model, frames)
        pairs = partners(frames, np.arange(0, len(frames), frames.views))
        pairs = pairs[[bool(is_valid(frames.depths(pair)).flatten(1).any(dim=1).all()) for pair in pairs]]
        drifts = knocks(len(pairs), torch.Generator().manual_seed(0))
        scenes = frames.scenes(pairs[:, 0])
        for known in told:
            scores = [_score(task, pair[None], known, drift) for pair, drift in zip(pairs, drifts, strict=True)]
            if known == "drifted":
                assumed = [_assumed(task, pair[None], drift) for pair, drift in zip(pairs, drifts, strict=True)]
                rows.append(summarize(name, "poses before the drift", _columns(assumed), scenes))
            rows.append(summarize(name, f"two views, {TOLD[known]}", _columns(scores), scenes))
    return rows


def _columns(scores: Sequence[Mapping[str, float]]) -> dict[str, np.ndarray]:
    names = dict.fromkeys(name for score in scores for name in score)
    return {name: np.array([score.get(name, np.nan) for score in scores]) for name in names}


def _score(task: ViewsTask, pair: Rows, known: Known, drift: Tensor) -> dict[str, float]:
    depth, k, poses = (part[0].cpu() for part in task.truth(pair, known))
    valid = is_valid(depth)
    found = task.predict(pair, known, drift[None])
    points, said_depth, said_poses = (part[0].cpu() for part in (found.points_world, found.depth_z, found.cam2world))
    truth = Views(transform(poses, unproject(depth, k)), depth, poses)
    return scene_metrics(Views(points, said_depth, said_poses), truth, valid) | _off(said_poses, poses)


def _assumed(task: ViewsTask, pair: Rows, drift: Tensor) -> dict[str, float]:
    poses = task.truth(pair, "drifted")[2][0].cpu()
    before = torch.stack([poses[0], compose(poses[1], drift)])
    errors = np.maximum(*pose_errors(before, poses))
    return {f"pose_auc{limit}": auc(errors, limit) for limit in (5, 30)} | _off(before, poses)


def _off(said: Tensor, poses: Tensor) -> dict[str, float]:
    """Degrees and centimetres by which the second camera's pose relative to the first is off; poses [2 4 4] each."""
    turned, _ = pose_errors(said, poses)
    here, there = (relative_to_first(both[None])[0, 1, :3, 3] for both in (said, poses))
    return {"rotation_deg": float(turned[0]), "translation_cm": 100 * float((here - there).norm())}


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
        parts["rotation"], parts["translation"] = (CAMERAS * part for part in _pose_losses(found.cam2world, poses))
    return {"loss": torch.stack(list(parts.values())).sum(), **parts}


def _pose_losses(said: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Errors of rotation and translation of all poses [b v 4 4] but view 0's."""
    wrong = said[:, 1:] - truth[:, 1:]
    return robust(wrong[..., :3, :3].flatten(-2).norm(dim=-1)).mean(), robust(wrong[..., :3, 3].norm(dim=-1)).mean()
