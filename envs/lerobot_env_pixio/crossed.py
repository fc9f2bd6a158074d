"""Rates over several training seeds: every policy plays the same scenes, so seeds and scenes cross.

A method's success rate has two sources of luck: which weights training happened to reach, and which scenes happened to
be drawn. The intervals here answer for both: what if one trained again, and drew scenes again?

`pooled` and `paired_pooled` take the table of seeds and scenes apart by analysis of variance (random effects, crossed),
which gives the variance of its mean and, by Satterthwaite, how many degrees of freedom that estimate has: the spread of
three seeds, guessed from three seeds, needs a quantile far beyond 1.96. A rate's interval is then Wilson's, for as many
independent episodes as have that variance, so it never leaves 0 to 1. A difference's is put together from those of its
two rates (square and add, as Newcombe 1998 does for one seed; Zou and Donner 2008), which holds where an arm hardly
ever or nearly always succeeds, too. A hierarchical bootstrap is what the field mostly does instead. `coverage`
measures both; with the three to five seeds that one can afford, the bootstrap is too narrow wherever seeds differ
much, because it can only redraw the seeds that there are.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from lerobot_env_pixio.statistics import paired, wilson
from pixio_robot.errors import SettingError

_NOTHING = 1e-20  # a variance below is what rounding leaves of none: that of one success in a million is 1e-12


@dataclass(frozen=True, kw_only=True)
class PooledRate:
    """A rate, or a difference of rates, over training seeds and scenes.

    Attributes:
        value: The mean over all episodes.
        low: Lower end of the 95 % interval for other seeds and other scenes.
        high: Its upper end.
        per_seed: The mean of each seed, for one arm or for both.
    """

    value: float
    low: float
    high: float
    per_seed: tuple[tuple[float, ...], ...]


def pooled(successes: ArrayLike) -> PooledRate:
    """Give the success rate of a method over training seeds and scenes.

    Args:
        successes: Bool [seeds scenes]; a column is the same scene for every seed.

    Raises:
        SettingError: No such table, or one seed only, which cannot tell how seeds differ.
    """
    table = _table(successes)
    rate = float(table.mean())
    below, above = _reach(table, *spread_of_mean([table]))
    return _result([table], rate - below, rate + above)


def paired_pooled(a: ArrayLike, b: ArrayLike) -> PooledRate:
    """Give the difference of two methods' success rates, a less b, on the same scenes.

    What makes a scene easy or hard for both falls out, which is what pairing is for. Only scenes are paired: a seed of
    one arm and a seed of the other have nothing in common, and there may be more of the one than of the other.

    Args:
        a: Bool [seeds scenes].
        b: Bool [seeds scenes], the same scenes in the same order.

    Raises:
        SettingError: No such tables, other numbers of scenes, or an arm of one seed only.
    """
    arms = [_table(a), _table(b)]
    _refuse_other_scenes(arms)
    difference = float(arms[0].mean() - arms[1].mean())
    variance, quantile = spread_of_mean(arms)
    if variance == 0:  # nothing varies: what one seed's scenes say
        alone = paired((arms[0][0] > 0).tolist(), (arms[1][0] > 0).tolist())
        return _result(arms, alone.low, alone.high)
    one, other = (spread_of_mean([table])[0] for table in arms)
    phi = float(np.clip((one + other - variance) / 2 / (one * other) ** 0.5, -1, 1)) if one * other else 0.0
    (down, up), (down_other, up_other) = _reach(arms[0], one, quantile), _reach(arms[1], other, quantile)
    low = difference - (max(down**2 + up_other**2 - 2 * phi * down * up_other, 0)) ** 0.5
    high = difference + (max(up**2 + down_other**2 - 2 * phi * up * down_other, 0)) ** 0.5
    return _result(arms, low, high)


def _reach(table: NDArray[np.float64], variance: float, quantile: float) -> tuple[float, float]:
    """Say how far the limits of a rate lie below and above it, by its variance and Student's quantile."""
    rate, scenes = float(table.mean()), table.shape[1]
    if variance == 0:  # nothing varies: what one seed's scenes say
        low, high = wilson(round(rate * scenes), scenes)
    else:
        low, high = _score_interval(rate, rate * (1 - rate) / variance, quantile)
    return rate - low, high - rate


def _table(successes: ArrayLike) -> NDArray[np.float64]:
    table = np.asarray(successes, np.float64)
    if table.ndim != 2 or min(table.shape) < 2:
        raise SettingError(
            f"Successes of shape {list(table.shape)}: give [seeds scenes], at least 2 of each. For one training seed, "
            "use wilson() or paired(), which answer for its scenes alone."
        )
    if not np.isin(table, (0, 1)).all():
        raise SettingError("Successes hold something else than true and false. Leave broken episodes' scenes out.")
    return table


def _refuse_other_scenes(arms: list[NDArray[np.float64]]) -> None:
    if len({table.shape[1] for table in arms}) > 1:
        raise SettingError(
            f"The arms are {[list(table.shape) for table in arms]} [seeds scenes]: pairing needs the same scenes."
        )


def _result(arms: list[NDArray[np.float64]], low: float, high: float) -> PooledRate:
    means = [tuple(float(mean) for mean in table.mean(axis=1)) for table in arms]
    value = float(arms[0].mean() - sum(table.mean() for table in arms[1:]))
    return PooledRate(value=value, low=low, high=high, per_seed=tuple(means))


def spread_of_mean(*tasks: list[NDArray[np.float64]]) -> tuple[float, float]:
    """Give the variance of a mean, or of a difference of two, over other seeds and scenes, and Student's quantile.

    Of several tasks it is the mean of their means: each has scenes of its own, and a seed may be good at all of them.
    Where nothing varies, the variance is exactly 0.

    Args:
        *tasks: One or two tables [seeds scenes] each, of successes or of any other numbers; scenes in the same order in
            both, seeds in all tasks.
    """
    # Mean squares as variances of the arms' means: what the means of seeds vary by, and what is left of a table once
    # the means of seeds and scenes are taken out. Each holds the episodes' own luck once.
    seeds_part, scenes_part, rest_part, squared, squared_rest = 0.0, 0.0, 0.0, 0.0, 0.0
    for tables in zip(*tasks, strict=True):
        count = len(tables[0])
        of_seeds = np.mean([table.mean(axis=1) for table in tables], axis=0).var(ddof=1) / count
        seeds_part, squared = seeds_part + of_seeds, squared + of_seeds**2 / (count - 1)
        for table in tables:
            rest = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + table.mean()
            freedom = (count - 1) * (table.shape[1] - 1)
            of_rest = (rest**2).sum() / freedom / table.size / len(tasks) ** 2
            rest_part, squared_rest = rest_part + of_rest, squared_rest + of_rest**2 / freedom
    squared_total = squared + squared_rest
    for arms in tasks:
        by_scene = arms[0].mean(axis=0) - sum(table.mean(axis=0) for table in arms[1:])
        of_scenes = by_scene.var(ddof=1) / by_scene.size / len(tasks) ** 2
        scenes_part, squared_total = scenes_part + of_scenes, squared_total + of_scenes**2 / (by_scene.size - 1)
    variance = seeds_part + scenes_part - rest_part  # the luck is in both, and counts once
    if variance <= rest_part * (1 + 1e-9):  # as if neither seeds nor scenes differed; the luck is always left
        variance, squared_total = rest_part, squared_rest
    if variance < _NOTHING:
        return 0.0, float(stats.norm.ppf(0.975))
    freedom = variance**2 / squared_total
    return float(variance), float(stats.t.ppf(0.975, max(freedom, 1.0)))


def _score_interval(rate: float, episodes: float, quantile: float) -> tuple[float, float]:
    """Give Wilson's interval of a rate over a number of independent episodes that need not be whole."""
    share = quantile**2 / episodes
    middle = (rate + share / 2) / (1 + share)
    reach = (share * (rate * (1 - rate) + share / 4)) ** 0.5 / (1 + share)
    return middle - reach, middle + reach
