"""What a robot wants to know of a point cloud: centimetres in its base frame, without any alignment."""

from collections.abc import Mapping

import numpy as np
import torch

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
