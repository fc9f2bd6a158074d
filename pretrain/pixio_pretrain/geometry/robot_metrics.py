"""What a robot wants to know of a point cloud: centimetres in its base frame, without any alignment."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pixio_pretrain.geometry.metrics import Floats, Maps, as_floats
from pixio_robot.errors import DataError

TOLERANCES = (0.01, 0.02, 0.05)
"""Metres, for ``f_scores``."""

_MOST_POINTS = 20_000  # of one cloud, in f_scores
_CHUNK = 1024


def point_errors(
    prediction: Maps, truth: Maps, valid: Maps, *, regions: Mapping[str, Maps] | None = None
) -> dict[str, float]:
    """Measure how far each pixel's point is from where it should be.

    Args:
        prediction: Points in the base frame, metres [... 3].
        truth: The same pixels' points [... 3].
        valid: Bool [...], the pixels that count.
        regions: Further masks [...] by name, such as the gripper's pixels or those inside the workspace; the table
            dominates the median of a whole picture.

    Returns:
        "median_cm", "mean_cm" and "p95_cm" of all pixels, and "NAME_median_cm" for each region; NaN for a region
        without a valid pixel.

    Raises:
        DataError: No valid pixel at all, or shapes that differ.
    """
    known = as_floats(valid) > 0
    if tuple(prediction.shape) != tuple(truth.shape) or tuple(truth.shape) != (*known.shape, 3):
        raise DataError(
            f"Points must be [... 3] and valid [...], not {list(prediction.shape)}, {list(truth.shape)} and "
            f"{list(known.shape)}."
        )
    if not known.any():
        raise DataError("No pixel is valid, so there is nothing to measure.")
    errors = 100 * np.linalg.norm(as_floats(prediction) - as_floats(truth), axis=-1)
    found = {
        "median_cm": np.median(errors[known]),
        "mean_cm": errors[known].mean(),
        "p95_cm": np.quantile(errors[known], 0.95),
    }
    for name, mask in (regions or {}).items():
        inside = known & (as_floats(mask) > 0)
        found[f"{name}_median_cm"] = np.median(errors[inside]) if inside.any() else np.nan
    return {name: float(value) for name, value in found.items()}


def inside_box(points: Maps, low: Sequence[float], high: Sequence[float]) -> NDArray[np.bool_]:
    """Say which points [... 3] lie inside a box of the base frame, such as the workspace: bool [...]."""
    values = as_floats(points)
    return np.all((values >= np.asarray(low)) & (values <= np.asarray(high)), axis=-1)


def f_scores(prediction: Maps, truth: Maps) -> dict[str, float]:
    """Compare two clouds by their nearest neighbours (arXiv 1905.03678, section 5): harmonic mean of two shares.

    The shares are of predicted points that have a true one within the tolerance, and of true points that have a
    predicted one. Clouds of more than 20 000 points are thinned evenly.

    Args:
        prediction: Points [n 3], metres.
        truth: Points [m 3], metres.

    Returns:
        "f_1cm", "f_2cm" and "f_5cm", 0 to 1.

    Raises:
        DataError: An empty cloud.
    """
    if not len(prediction) or not len(truth):
        raise DataError(f"Clouds of {len(prediction)} and {len(truth)} points cannot be compared.")
    a, b = _thin(prediction), _thin(truth)
    there, back = _nearest(a, b), _nearest(b, a)
    scores = {}
    for tolerance in TOLERANCES:
        precision, recall = (there <= tolerance).mean(), (back <= tolerance).mean()
        scores[f"f_{100 * tolerance:g}cm"] = float(2 * precision * recall / max(precision + recall, 1e-12))
    return scores


class Sparsification(NamedTuple):
    """How the mean error falls as the least trusted pixels are left out (arXiv 1802.07095, section 4).

    Attributes:
        kept: Shares of pixels that are kept, falling from 1.
        error: Mean error of the most trusted ones.
        oracle: The same if trust were perfect.
        ause: Area between the two curves, as a share of the mean error of all pixels; 0 is perfect.
    """

    kept: Floats
    error: Floats
    oracle: Floats
    ause: float


def sparsification(errors: Maps, confidence: Maps, *, steps: int = 20) -> Sparsification:
    """Measure what a confidence is worth.

    Args:
        errors: At least 0, any shape.
        confidence: The same shape; more is more trusted.
        steps: Points of the curves.

    Raises:
        DataError: Shapes that differ, or nothing to sort.
    """
    e, c = as_floats(errors).ravel(), as_floats(confidence).ravel()
    if len(e) != len(c) or not len(e):
        raise DataError(f"{len(e)} errors and {len(c)} confidences: one of each is needed for every pixel.")
    kept = 1 - np.arange(steps) / steps
    counts = np.maximum(np.round(kept * len(e)).astype(int), 1)

    def curve(order: np.ndarray) -> Floats:
        return (np.cumsum(e[order]) / np.arange(1, len(e) + 1))[counts - 1]

    error, oracle = curve(np.argsort(-c, kind="stable")), curve(np.argsort(e, kind="stable"))
    return Sparsification(kept, error, oracle, float((error - oracle).mean() / max(e.mean(), 1e-12)))


def _thin(points: Maps) -> torch.Tensor:
    values = torch.from_numpy(as_floats(points))
    return values[:: -(-len(values) // _MOST_POINTS)].float()


def _nearest(points: torch.Tensor, others: torch.Tensor) -> Floats:
    """Distance from each point [n 3] to the nearest of the others [m 3]."""
    parts = [
        torch.cdist(part, others, compute_mode="donot_use_mm_for_euclid_dist").amin(dim=1)
        for part in points.split(_CHUNK)
    ]
    return torch.cat(parts).double().numpy()
