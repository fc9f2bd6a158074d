"""Errors of depth maps in metres, without any alignment: the columns of Pixio's tables, exactly as it takes them.

Every image counts once: a metric is taken over the valid pixels of each image, then averaged over images (arXiv
2512.15715, section 4.1). Everything is computed in float64. Scenes of several views are measured in `scene_metrics`,
and what a robot wants to know in `robot_metrics`.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pixio_robot.errors import DataError

Maps = NDArray[Any] | torch.Tensor
Floats = NDArray[np.float64]

FEWEST_PIXELS = 10
"""Images with fewer valid pixels are left out."""

THRESHOLDS = {"delta1": 1.25, "delta2": 1.25**2, "delta3": 1.25**3, "delta1.03": 1.03}


def depth_errors(
    prediction: Maps,
    truth: Maps,
    *,
    mask: Maps | None = None,
    min_depth: float = 1e-3,
    max_depth: float = 10.0,
) -> dict[str, Floats]:
    """Measure each depth map by itself.

    With d = log(prediction) - log(truth): "silog" is sqrt(mean(d^2) - 0.5 mean(d)^2), and "delta1" the share of pixels
    with max(prediction / truth, truth / prediction) < 1.25. Predictions below ``min_depth`` count as ``min_depth``, so
    that their logarithm exists.

    Args:
        prediction: Metres [b h w].
        truth: Metres [b h w]; 0 or less, NaN and infinity mean unknown.
        mask: Bool [b h w], pixels that may count, such as those of a crop; all if absent.
        min_depth: Nearest depth that counts, metres.
        max_depth: Farthest depth that counts, metres.

    Returns:
        "abs_rel", "sq_rel" (metres), "rmse" (metres), "rmse_log", "log10", "silog" (not times 100), "delta1",
        "delta2", "delta3" and "delta1.03" (shares), each [b]; NaN for an image with fewer than ``FEWEST_PIXELS`` valid
        pixels.

    Raises:
        DataError: Shapes that differ, or a prediction that is not finite.
    """
    predicted, true = as_floats(prediction), as_floats(truth)
    shapes = [list(predicted.shape), list(true.shape)] + ([] if mask is None else [list(mask.shape)])
    if predicted.ndim != 3 or any(shape != shapes[0] for shape in shapes):
        raise DataError(f"Prediction, truth and mask must have one shape [b h w], not {shapes}.")
    with np.errstate(invalid="ignore"):
        valid = (true > 0) & (true >= min_depth) & (true <= max_depth)
    if mask is not None:
        valid &= as_floats(mask) > 0
    if not np.isfinite(predicted[valid]).all():
        raise DataError(f"{int((~np.isfinite(predicted[valid])).sum())} predicted depths are NaN or infinite.")
    measured = [_errors(np.maximum(p[v], min_depth), t[v]) for p, t, v in zip(predicted, true, valid, strict=True)]
    names = ("abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "silog", *THRESHOLDS)
    return {name: np.array([row.get(name, np.nan) for row in measured]) for name in names}


def as_floats(values: Maps) -> Floats:
    """Bring a tensor or an array to float64 on the CPU."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, np.float64)


def _errors(p: Floats, t: Floats) -> dict[str, float]:
    """Measure the valid pixels of one image, each [n]."""
    if len(t) < FEWEST_PIXELS:
        return {}
    d, ratio = np.log(p) - np.log(t), np.maximum(p / t, t / p)
    squared = (p - t) ** 2
    found = {
        "abs_rel": np.mean(np.abs(p - t) / t),
        "sq_rel": np.mean(squared / t),
        "rmse": np.sqrt(squared.mean()),
        "rmse_log": np.sqrt(np.mean(d**2)),
        "log10": np.mean(np.abs(d)) / np.log(10),
        "silog": np.sqrt(max(np.mean(d**2) - 0.5 * d.mean() ** 2, 0.0)),
    }
    found |= {name: np.mean(ratio < threshold) for name, threshold in THRESHOLDS.items()}
    return {name: float(value) for name, value in found.items()}
