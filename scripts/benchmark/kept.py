"""What share of its success a method keeps when the looks of the scene change."""

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lerobot_env_pixio import paired
from lerobot_env_pixio.crossed import spread_of_mean

MOST = 2.0
"""The largest share that is looked at: twice as many successes as without the shift."""
PRECISION = 1e-3


def share_kept(clean: NDArray[np.bool_], shifted: NDArray[np.bool_]) -> tuple[float, float, float] | None:
    """Give the share of the clean success rate that is left, with its 95 % interval by Fieller's theorem.

    A share r is inside if the mean of shifted - r * clean, over seeds and scenes, cannot be told from zero (Fieller
    1954, J. R. Stat. Soc. B 16, 175-185). Scenes and seeds are paired, since the same policies play the same scenes
    twice. With several training seeds, the variance is that of other seeds and other scenes, as in ``pooled``; with one
    seed, of other scenes.

    Args:
        clean: Bool [seeds scenes].
        shifted: Bool [seeds scenes], of the same policies and scenes.

    Returns:
        The share and the ends of its interval, at most ``MOST``; None if there is no clean success, or so few that any
        share is possible.
    """
    first, second = np.asarray(clean, float), np.asarray(shifted, float)
    if not first.any():
        return None
    if (first == second).all():  # nothing varies: what one seed's scenes say
        alone, rate = paired(shifted[0].tolist(), clean[0].tolist()), float(first.mean())
        return 1.0, max(0.0, 1 + alone.low / rate), min(MOST, 1 + alone.high / rate)
    share = float(second.mean() / first.mean())
    low, high = (_last_inside(first, second, share, end) for end in (0.0, max(share, MOST)))
    return None if (low, high) == (0.0, max(share, MOST)) else (share, low, high)


def more_kept(
    arm: tuple[NDArray[np.bool_], NDArray[np.bool_]], other: tuple[NDArray[np.bool_], NDArray[np.bool_]]
) -> tuple[float, float, float] | None:
    """Give how much larger a share one arm keeps than another, with its 95 % interval by linearisation.

    A share is a ratio of two means; to first order it moves with the mean of (shifted - share * clean) / clean rate
    (the delta method). Two arms' shares therefore differ as two means do, and what makes a scene hard for both falls
    out, as in ``paired_pooled``.

    Args:
        arm: Clean and shifted successes, bool [seeds scenes] each, as in ``share_kept``.
        other: Those of the arm to compare with; the same scenes, and any number of seeds.

    Returns:
        The difference of the shares and the ends of its interval, at most ``MOST``; None if a share cannot be told.
    """
    shares = [share_kept(*tables) for tables in (arm, other)]
    first, second = shares
    if first is None or second is None:
        return None
    moved = [
        (np.asarray(shifted, float) - share * np.asarray(clean, float)) / clean.mean()
        for (clean, shifted), (share, *_) in ((arm, first), (other, second))
    ]
    difference = first[0] - second[0]
    if min(*moved[0].shape, *moved[1].shape) > 1:
        variance, quantile = spread_of_mean(moved)
    else:
        by_scene = moved[0].mean(axis=0) - moved[1].mean(axis=0)
        variance, quantile = by_scene.var(ddof=1) / by_scene.size, float(stats.t.ppf(0.975, by_scene.size - 1))
    if variance == 0:  # nothing varies: what each share may be by itself
        return difference, first[1] - second[2], first[2] - second[1]
    reach = quantile * float(variance) ** 0.5
    return difference, max(difference - reach, -MOST), min(difference + reach, MOST)


def _last_inside(clean: NDArray[np.float64], shifted: NDArray[np.float64], inside: float, end: float) -> float:
    """The share farthest from one that is inside, towards an end, by bisection; the end itself if that is inside."""
    if _may_be_zero(shifted - end * clean):
        return end
    while abs(end - inside) > PRECISION:
        middle = (inside + end) / 2
        inside, end = (middle, end) if _may_be_zero(shifted - middle * clean) else (inside, middle)
    return inside


def _may_be_zero(table: NDArray[np.float64]) -> bool:
    """Whether the mean of a table [seeds scenes] cannot be told from zero at the 5 % level."""
    if min(table.shape) > 1:
        variance, quantile = spread_of_mean([table])
    else:
        variance, quantile = table.var(ddof=1) / table.size, float(stats.t.ppf(0.975, table.size - 1))
    return abs(table.mean()) <= quantile * variance**0.5 + 1e-12
