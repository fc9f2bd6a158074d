"""What share of its success a method keeps when the looks of the scene change."""

import numpy as np
from scipy import stats

from benchmark.estimates import Estimate, Numbers, Table, rate_of
from lerobot_env_pixio import paired
from lerobot_env_pixio.crossed import spread_of_mean

MOST = 2.0
"""The largest share that is looked at: twice as many successes as without the shift."""
PRECISION = 1e-3


def share_kept(clean: Table, shifted: Table) -> Estimate | None:
    """Give the share of the clean success rate that is left, with its 95 % interval by Fieller's theorem.

    A share r is inside if the mean of shifted - r * clean, over seeds and scenes, cannot be told from zero (Fieller
    1954, J. R. Stat. Soc. B 16, 175-185). Scenes and seeds are paired, since the same policies play the same scenes
    twice. With several training seeds, the variance is that of other seeds and other scenes, as in ``pooled``; with one
    seed, of other scenes. Where all successes are lost, the two rates' own intervals say how large a share may be left.

    Args:
        clean: Bool [seeds scenes].
        shifted: Bool [seeds scenes], of the same policies and scenes.

    Returns:
        The share; its interval ends at ``MOST`` at most. None if there is one scene only, no clean success, or so few
        that any share is possible.
    """
    first, second = np.asarray(clean, float), np.asarray(shifted, float)
    if not first.any() or first.shape[1] < 2:
        return None
    if (first == second).all():  # nothing varies: what one seed's scenes say
        alone, rate = paired(shifted[0].tolist(), clean[0].tolist()), float(first.mean())
        return Estimate(value=1.0, low=max(0.0, 1 + alone.low / rate), high=min(MOST, 1 + alone.high / rate))
    if not second.any():  # nor does zero times anything: what the two rates may be
        before, after = rate_of(clean), rate_of(shifted)
        return Estimate(value=0.0, low=0.0, high=after.high / before.low) if after.high < MOST * before.low else None
    share = float(second.mean() / first.mean())
    low, high = (_last_inside(first, second, share, end) for end in (0.0, max(share, MOST)))
    if (low, high) == (0.0, max(share, MOST)):
        return None
    return Estimate(value=share, low=low, high=high, parts=_several(_moved(first, second, share)))


def more_kept(arm: tuple[Table, Table], other: tuple[Table, Table]) -> Estimate | None:
    """Give how much larger a share one arm keeps than another, with its 95 % interval by linearisation.

    A share is a ratio of two means; to first order it moves with the mean of (shifted - share * clean) / clean rate
    (the delta method). Two arms' shares therefore differ as two means do, and what makes a scene hard for both falls
    out, as in ``paired_pooled``.

    Args:
        arm: Clean and shifted successes, bool [seeds scenes] each, as in ``share_kept``.
        other: Those of the arm to compare with; the same scenes, and any number of seeds.

    Returns:
        The difference of the shares; its interval ends at ``MOST`` at most. None if a share cannot be told.
    """
    first, second = share_kept(*arm), share_kept(*other)
    if first is None or second is None:
        return None
    moved = [_moved(*tables, share.value) for tables, share in ((arm, first), (other, second))]
    difference = first.value - second.value
    variance, quantile = _spread(moved)
    if variance == 0 or not all(table.any() for table in moved):  # an arm does not vary: what each share alone may be
        return Estimate(value=difference, low=first.low - second.high, high=first.high - second.low)
    reach = quantile * variance**0.5
    low, high = max(difference - reach, -MOST), min(difference + reach, MOST)
    return Estimate(value=difference, low=low, high=high, parts=_several(*moved))


def _moved(clean: Table | Numbers, shifted: Table | Numbers, share: float) -> Numbers:
    """What each seed and scene moves a share by, to first order, times their number."""
    return (np.asarray(shifted, float) - share * np.asarray(clean, float)) / clean.mean()


def _several(*tables: Numbers) -> tuple[Numbers, ...] | None:
    """Tables of several seeds each, or nothing."""
    return tables if min(len(table) for table in tables) > 1 else None


def _last_inside(clean: Numbers, shifted: Numbers, inside: float, end: float) -> float:
    """The share farthest from one that is inside, towards an end, by bisection; the end itself if that is inside."""
    if _may_be_zero(shifted - end * clean):
        return end
    while abs(end - inside) > PRECISION:
        middle = (inside + end) / 2
        inside, end = (middle, end) if _may_be_zero(shifted - middle * clean) else (inside, middle)
    return inside


def _may_be_zero(table: Numbers) -> bool:
    """Whether the mean of a table [seeds scenes] cannot be told from zero at the 5 % level."""
    variance, quantile = _spread([table])
    return abs(table.mean()) <= quantile * variance**0.5 + 1e-12


def _spread(tables: list[Numbers]) -> tuple[float, float]:
    """As ``spread_of_mean``, but over scenes alone where a table has one seed."""
    if min(len(table) for table in tables) > 1:
        return spread_of_mean(tables)
    by_scene = tables[0].mean(axis=0) - sum(table.mean(axis=0) for table in tables[1:])
    variance = 0.0 if np.ptp(by_scene) < 1e-9 else float(by_scene.var(ddof=1)) / by_scene.size
    return variance, float(stats.t.ppf(0.975, by_scene.size - 1))
