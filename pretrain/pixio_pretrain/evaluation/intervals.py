"""95 % intervals of metrics, by drawing the validation images (or scenes) anew; the same draws for all encoders."""

import numpy as np

from pixio_pretrain.evaluation.job import Values
from pixio_pretrain.probe.resampling import DRAWS

_CHUNK = 100


def resampled(values: Values, stratum: str, *, draws: int = DRAWS) -> Values:
    """Compute a metric from its images, and again from as many images drawn with replacement, many times.

    Draws depend on ``stratum`` and the number of images alone: arrays of two encoders can be subtracted element by
    element, which makes their difference paired.

    Args:
        values: The metric of each image [n], NaN for one that does not count; its mean is the metric. Or intersection
            and union of each image's classes [n classes 2]: the metric is the mean over classes of the ratio of sums.
        stratum: Names the draws.
        draws: Their number.

    Returns:
        [1 + draws]: the metric itself, then those of the draws; ``interval`` reads them.
    """
    n = len(values)
    flat = values[:, None, None] if values.ndim == 1 else values
    if values.ndim == 1:
        flat = np.concatenate([np.nan_to_num(flat), np.isfinite(flat)], axis=2)  # a sum, and how many count
    table = flat.reshape(n, -1).astype(np.float64)
    random = np.random.default_rng(list(stratum.encode()))
    sums = [np.ones((1, n)) @ table]
    for start in range(0, draws, _CHUNK):
        counts = random.multinomial(n, np.full(n, 1 / n), size=min(_CHUNK, draws - start))
        sums.append(counts.astype(np.float64) @ table)
    over, under = np.concatenate(sums).reshape(1 + draws, -1, 2).transpose(2, 0, 1)
    return (over / np.maximum(under, 1)).mean(axis=1)
