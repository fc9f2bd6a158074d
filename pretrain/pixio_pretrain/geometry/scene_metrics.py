"""Errors of several views at once: the six columns of MapAnything's table, exactly as it takes them.

Prediction and truth are each moved into their own first camera's frame and, but for the scale itself, divided by their
own mean distance of points from it (arXiv 2509.13414, section 4, and the released benchmark). What follows from that is
easily misread: "points_tau" and "depth_tau" compare distances, so a point at the right distance in a wrong direction is
an inlier; "pose_auc5" compares the directions of baselines up to their sign and never their lengths; only "scale_rel"
says anything about metres. What a robot needs beside them is in `robot_metrics`.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pixio_pretrain.geometry.metrics import Floats, Maps, as_floats
from pixio_robot.errors import DataError

INLIER = 1.03


class Views(NamedTuple):
    """What is known, or said, of v views of one scene, in any common frame.

    Attributes:
        points: Where each pixel's point is, metres [v h w 3].
        depth: Along each camera's optical axis, metres [v h w].
        cam2world: Poses in the same frame [v 4 4].
    """

    points: Maps
    depth: Maps
    cam2world: Maps


def scene_metrics(prediction: Views, truth: Views, valid: Maps) -> dict[str, float]:
    """Measure one scene.

    Args:
        prediction: What was said.
        truth: What is so.
        valid: Bool [v h w], the pixels that count.

    Returns:
        "scale_rel", "points_rel", "depth_rel" (shares), "points_tau", "depth_tau", "pose_auc5", "pose_auc30" (per
        cent).

    Raises:
        DataError: Fewer than two views, shapes that differ, or no valid pixel in some view.
    """
    known = as_floats(valid) > 0
    shape = known.shape
    if known.ndim != 3 or shape[0] < 2:
        raise DataError(f"A scene of several views needs at least two of them: valid is {list(shape)}, not [v h w].")
    for name, views in (("prediction", prediction), ("truth", truth)):
        wanted = {"points": (*shape, 3), "depth": shape, "cam2world": (shape[0], 4, 4)}
        for part, size in wanted.items():
            if tuple(getattr(views, part).shape) != size:
                raise DataError(f"{part} of the {name} must be {list(size)}, not {list(getattr(views, part).shape)}.")
    if not known.any(axis=(1, 2)).all():
        raise DataError("A view has no valid pixel, so its errors are undefined: leave it out.")
    p, t = _normalised(prediction, known), _normalised(truth, known)
    ratio = _ratio(np.linalg.norm(p.points, axis=-1), np.linalg.norm(t.points, axis=-1))
    distance = np.linalg.norm(p.points - t.points, axis=-1) / np.linalg.norm(t.points, axis=-1).clip(1e-9)
    rotation, direction = pose_errors(prediction.cam2world, truth.cam2world)
    worst = np.maximum(rotation, direction)
    return {
        "scale_rel": abs(p.scale - t.scale) / t.scale,
        "points_rel": _by_view(distance, known),
        "points_tau": 100 * _by_view(ratio < INLIER, known),
        "pose_auc5": auc(worst, 5),
        "pose_auc30": auc(worst, 30),
        "depth_rel": _by_view(np.abs(p.depth - t.depth) / t.depth.clip(1e-9), known),
        "depth_tau": 100 * _by_view(_ratio(p.depth, t.depth) < INLIER, known),
    }


def pose_errors(prediction: Maps, truth: Maps) -> tuple[Floats, Floats]:
    """Compare the relative poses of all pairs of views.

    Args:
        prediction: cam2world [v 4 4], in any frame.
        truth: cam2world [v 4 4], in any frame.

    Returns:
        Degrees, each [v (v - 1) / 2]: of rotation, and between the directions of the baselines, whichever way they
        point. A baseline of no length has no direction: 90 degrees, unless both have none.
    """
    relative = []
    for poses in (as_floats(prediction), as_floats(truth)):
        first, second = np.triu_indices(len(poses), 1)
        relative.append(np.linalg.inv(poses[first]) @ poses[second])
    p, t = relative
    rotation = _angles(p, t)
    a, b = p[:, :3, 3], t[:, :3, 3]
    direction = np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b), axis=1), np.abs((a * b).sum(axis=1))))
    still = np.stack([np.linalg.norm(a, axis=1) < 1e-9, np.linalg.norm(b, axis=1) < 1e-9])
    return rotation, np.where(still.any(axis=0) & ~still.all(axis=0), 90.0, direction)


def camera_errors(prediction: Maps, truth: Maps) -> tuple[Floats, Floats]:
    """Say how far cameras are off as view 0 sees them, the length of the baseline included.

    Args:
        prediction: cam2world [v 4 4], in any frame.
        truth: cam2world [v 4 4], in any frame.

    Returns:
        Of every view but the first: degrees, and the distance in the unit of the poses, each [v - 1].
    """
    p, t = (np.linalg.inv(poses[:1]) @ poses[1:] for poses in (as_floats(prediction), as_floats(truth)))
    return _angles(p, t), np.linalg.norm(p[:, :3, 3] - t[:, :3, 3], axis=1)


def auc(errors: Floats, limit: int) -> float:
    """Give the area under the curve of recall over error, in bins of one degree up to ``limit``, per cent."""
    counts, _ = np.histogram(errors, bins=np.arange(limit + 1))
    return float(100 * np.mean(np.cumsum(counts) / len(errors)))


def _angles(poses: Floats, others: Floats) -> Floats:
    """Degrees between the rotations of poses [n 4 4]."""
    cosine = (np.einsum("nij,nij->n", poses[:, :3, :3], others[:, :3, :3]) - 1) / 2
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


class _Normalised(NamedTuple):
    points: Floats
    depth: Floats
    scale: float


def _normalised(views: Views, known: NDArray[np.bool_]) -> _Normalised:
    """Move points into the first camera's frame, and divide them and depth by their mean distance from it."""
    first = as_floats(views.cam2world)[0]
    points = (as_floats(views.points) - first[:3, 3]) @ first[:3, :3]
    scale = float(np.linalg.norm(points[known], axis=-1).mean())
    return _Normalised(points / max(scale, 1e-9), as_floats(views.depth) / max(scale, 1e-9), scale)


def _ratio(a: Floats, b: Floats) -> Floats:
    a, b = a.clip(1e-9), b.clip(1e-9)
    return np.maximum(a / b, b / a)


def _by_view(values: NDArray[Any], known: NDArray[np.bool_]) -> float:
    """Average over the pixels of each view, then over views."""
    return float(np.mean([value[mask].mean() for value, mask in zip(values, known, strict=True)]))
