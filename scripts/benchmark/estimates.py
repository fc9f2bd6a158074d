"""Rates and differences of rates with their intervals, for any number of training seeds, one included."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lerobot_env_pixio import paired, paired_pooled, pooled, wilson
from lerobot_env_pixio.crossed import spread_of_mean

Table = NDArray[np.bool_]
"""Successes [seeds scenes]."""
Numbers = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A rate, a share or a difference with its 95 % interval.

    Attributes:
        value: It.
        low: Lower end.
        high: Upper end.
        parts: With what it varies, to first order: the mean of a table [seeds scenes] of numbers, or the difference of
            two such means, give or take a constant. None where there is one seed, or nothing varies.
    """

    value: float
    low: float
    high: float
    parts: tuple[Numbers, ...] | None = None


def rate_of(table: Table) -> Estimate:
    """A success rate: over seeds and scenes where there are several seeds, over scenes alone where there is one."""
    if min(table.shape) > 1:
        found = pooled(table)
        return Estimate(value=found.value, low=found.low, high=found.high, parts=(table.astype(float),))
    low, high = wilson(int(table.sum()), table.size)
    return Estimate(value=float(table.mean()), low=low, high=high)


def difference_of(a: Table, b: Table) -> Estimate:
    """The difference of two arms' rates, paired over scenes; if either has one seed, for other scenes alone."""
    if min(*a.shape, *b.shape) > 1:
        found = paired_pooled(a, b)
        parts = (a.astype(float), b.astype(float))
        return Estimate(value=found.value, low=found.low, high=found.high, parts=parts)
    by_scene = a.mean(axis=0) - b.mean(axis=0)
    value = float(by_scene.mean())
    if len(a) == len(b) == 1 or np.ptp(by_scene) < 1e-9:  # no scene differs from another: what one seed's scenes say
        one = paired(a[0].tolist(), b[0].tolist())
        below, above = one.difference - one.low, one.high - one.difference
        return Estimate(value=value, low=max(value - below, -1.0), high=min(value + above, 1.0))
    reach = float(stats.t.ppf(0.975, len(by_scene) - 1) * stats.sem(by_scene))
    return Estimate(value=value, low=value - reach, high=value + reach)


def over_tasks(estimates: Sequence[Estimate]) -> Estimate:
    """Average estimates of several tasks, each task weighing alike; the interval is for these tasks, not for others.

    The limits come from how far each estimate's own limits lie from it (MOVER: Zou and Donner 2008, Statistics in
    Medicine 27, 1693-1702), which takes the estimates as independent. Scenes are, but a seed may be good or bad at all
    tasks: `random` is the same weights everywhere. Where all tasks have the same number of seeds, several, the limits
    are therefore stretched if the tables say that the mean spreads farther than that.
    """
    value = float(np.mean([one.value for one in estimates]))
    below, above = ([one.value - one.low for one in estimates], [one.high - one.value for one in estimates])
    stretch = _stretch([list(one.parts) for one in estimates if one.parts], len(estimates))
    together = [float(np.mean(side)) for side in (below, above)]  # were all tasks' luck one and the same
    reach = [
        min(stretch * float(np.linalg.norm(side)) / len(side), most)
        for side, most in zip((below, above), together, strict=True)
    ]
    return Estimate(value=value, low=value - reach[0], high=value + reach[1])


def _stretch(tasks: list[list[Numbers]], count: int) -> float:
    """How much farther the mean of tasks reaches than if each had seeds of its own; 1 where that cannot be told."""
    if len(tasks) < count or len({tuple(len(table) for table in task) for task in tasks}) > 1:
        return 1.0
    alone = sum(quantile**2 * variance for variance, quantile in (spread_of_mean(task) for task in tasks))
    variance, quantile = spread_of_mean(*tasks)
    return max(1.0, count * quantile * (variance / alone) ** 0.5) if alone else 1.0
