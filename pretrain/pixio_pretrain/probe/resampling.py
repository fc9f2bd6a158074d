"""Intervals by resampling seeds, and episodes or images, at once; draws of all encoders are the same."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixio_robot.errors import SettingError

DRAWS = 2000
_CHUNK = 100


def resampled_means(values: NDArray[np.float64], *, arm: str, stratum: str) -> NDArray[np.float64]:
    """Average seeds x episodes [s e], and again with both of them drawn anew, with replacement.

    This is the bootstrap of crossed factors (Owen 2007, "The pigeonhole bootstrap", Annals of Applied Statistics 1):
    every seed is measured on every episode, so seeds and episodes are drawn independently of each other. Episodes of
    one stratum are drawn alike for all arms, which makes differences between arms paired, and seeds of one arm alike
    for all strata. A single seed is no sample of seeds: then the interval speaks of episodes alone. The spread of few
    seeds is underestimated, that of three by a third of its variance.

    Args:
        values: One number per seed and episode.
        arm: Names the draw of seeds.
        stratum: Names the draw of episodes.

    Returns:
        [1 + DRAWS]: the mean itself, then those of the resamples. Whatever is computed from means can be computed from
        these arrays, element by element; ``interval`` reads the result.

    Raises:
        SettingError: If there is nothing to average.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or not values.size:
        raise SettingError(f"A mean over seeds and episodes wants values [s e], not {list(values.shape)}.")
    seeds, episodes = (
        _weights(count, name) for count, name in zip(values.shape, (f"arm {arm}", f"stratum {stratum}"), strict=True)
    )
    return np.einsum("ds,se,de->d", seeds, values, episodes, optimize=True)


def resampled(values: NDArray[np.float64], stratum: str, *, draws: int = DRAWS) -> NDArray[np.float64]:
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


def group_means(values: NDArray[np.floating[Any]], groups: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Average values [n] over the rows of each group [n], those that are finite; NaN for a group without any.

    Returns:
        One number per group, in ascending order of the groups.
    """
    names, where = np.unique(groups, return_inverse=True)
    known = np.isfinite(values)
    sums = np.bincount(where[known], values[known], minlength=len(names))
    counts = np.bincount(where[known], minlength=len(names))
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def over_seeds(draws: NDArray[np.float64], *, arm: str) -> NDArray[np.float64]:
    """Average seeds' resamples [s 1+DRAWS], in which units were drawn alike, with the seeds drawn anew as well.

    Gives what ``resampled_means`` gives, for figures that are no plain means. Returns [1 + DRAWS].
    """
    return np.einsum("ds,sd->d", _weights(len(draws), f"arm {arm}"), draws)


def interval(means: NDArray[np.float64]) -> tuple[float, float, float]:
    """Give the value itself and the 2.5 % and 97.5 % quantiles of its resamples."""
    low, high = np.quantile(means[1:], (0.025, 0.975))
    return float(means[0]), float(low), float(high)


def _weights(count: int, name: str) -> NDArray[np.float64]:
    """How much each of ``count`` things weighs: alike at first, then as often as it is drawn; each row sums to 1."""
    draws = np.random.default_rng(list(name.encode())).multinomial(count, np.full(count, 1 / count), size=DRAWS)
    return np.vstack([np.ones(count), draws]) / count
