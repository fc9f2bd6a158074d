"""What a multi-view model is worth: depth beside other methods', and whole scenes, told more or less of the cameras."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pixio_pretrain.geometry.drift import knocks
from pixio_pretrain.geometry.evaluation import Measure, summarize
from pixio_pretrain.geometry.mono import is_valid
from pixio_pretrain.geometry.scene_metrics import Views, auc, camera_errors, pose_errors, scene_metrics
from pixio_pretrain.geometry.sets import RgbdSet, Rows
from pixio_pretrain.geometry.views import Known, ViewsTask
from pixio_robot.geometry.cameras import compose, transform, unproject

TOLD: dict[Known, str] = {
    "nothing": "nothing known",
    "intrinsics": "intrinsics alone",
    "all": "calibrated",
    "drifted": "drift corrected",
}
"""Names for the table."""

SHOWN = ("points_rel", "depth_rel", "points_tau", "scale_rel", "pose_auc5", "pose_auc30")
SHOWN += ("rotation_deg", "translation_cm")
"""Columns of the table of pairs."""

_CHUNK = 16


def partners(frames: RgbdSet, rows: Rows) -> Rows:
    """Pair every frame with the next view of its moment: [b 2], the frame itself first."""
    moment, view = rows // frames.views, rows % frames.views
    return np.stack([rows, moment * frames.views + (view + 1) % frames.views], axis=1)


def measure_views(task_of: Callable[[RgbdSet], ViewsTask], known: Known) -> Measure:
    """Give a ``Measure``: the depth of every frame as the model sees it together with the next view.

    Args:
        task_of: The model on a set.
        known: What it is told.
    """

    def measure(frames: RgbdSet, rows: Rows) -> Tensor:
        task = task_of(frames)
        return torch.cat([task.predict(part, known).depth_z[:, 0].cpu() for part in _chunks(partners(frames, rows))])

    return measure


def evaluate_scenes(
    sets: Mapping[str, RgbdSet], task_of: Callable[[RgbdSet], ViewsTask], told: Sequence[Known] | None = None
) -> list[dict[str, Any]]:
    """Take MapAnything's six columns on every view and the next, and how far off the next one's pose is.

    Args:
        sets: By name.
        task_of: The model on a set.
        told: Of what; everything that the model can make use of when absent.

    Returns:
        Rows as ``evaluate`` gives them, for each set and each amount of knowledge; with poses given, columns of poses
        are right by construction, and say nothing. Where cameras drifted, a further row has the poses as they were
        told: what assuming no drift is worth.
    """
    rows = []
    for name, frames in sets.items():
        task = task_of(frames)
        pairs = partners(frames, np.arange(len(frames)))
        pairs = pairs[[bool(is_valid(frames.depths(pair)).flatten(1).any(dim=1).all()) for pair in pairs]]
        drift = knocks(len(pairs), torch.Generator().manual_seed(0), *task.model.settings.drift)
        scenes = frames.scenes(pairs[:, 0])
        for known in told or [known for known in TOLD if known != "drifted" or task.model.finder is not None]:
            if known == "drifted":
                assumed = _columns(_assumed(task.truth(pairs, known)[2].cpu(), drift))
                rows.append(summarize(name, "poses before the drift", assumed, scenes))
            parts = zip(_chunks(pairs), _chunks(drift), strict=True)
            scores = _columns([score for part, moved in parts for score in _scores(task, part, known, moved)])
            rows.append(summarize(name, f"two views, {TOLD[known]}", scores, scenes))
    return rows


def _chunks[Whole: (Rows, Tensor)](whole: Whole) -> list[Whole]:
    return [whole[start : start + _CHUNK] for start in range(0, len(whole), _CHUNK)]


def _columns(scores: Sequence[Mapping[str, float]]) -> dict[str, np.ndarray]:
    names = dict.fromkeys(name for score in scores for name in score)
    return {name: np.array([score.get(name, np.nan) for score in scores]) for name in names}


def _scores(task: ViewsTask, pairs: Rows, known: Known, drift: Tensor) -> list[dict[str, float]]:
    depth, k, poses = (part.cpu() for part in task.truth(pairs, known))
    points = transform(poses, unproject(depth, k))
    found = task.predict(pairs, known, drift)
    said = [part.cpu() for part in (found.points_world, found.depth_z, found.cam2world)]
    return [
        scene_metrics(Views(*(part[row] for part in said)), Views(points[row], depth[row], poses[row]), valid)
        | _off(said[2][row], poses[row])
        for row, valid in enumerate(is_valid(depth))
    ]


def _assumed(poses: Tensor, drift: Tensor) -> list[dict[str, float]]:
    scores = []
    for truth, told in zip(poses, torch.stack([poses[:, 0], compose(poses[:, 1], drift)], dim=1), strict=True):
        errors = np.maximum(*pose_errors(told, truth))
        scores.append({f"pose_auc{limit}": auc(errors, limit) for limit in (5, 30)} | _off(told, truth))
    return scores


def _off(said: Tensor, poses: Tensor) -> dict[str, float]:
    """Degrees and centimetres by which the second camera's pose relative to the first is off; poses [2 4 4] each."""
    turned, moved = camera_errors(said, poses)
    return {"rotation_deg": float(turned[0]), "translation_cm": 100 * float(moved[0])}
