"""What share of its success a method keeps when the looks of the scene change."""

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lerobot_env_pixio import paired
from lerobot_env_pixio.crossed import _spread_of_mean

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
        variance, quantile = _spread_of_mean([table])
    else:
        variance, quantile = table.var(ddof=1) / table.size, float(stats.t.ppf(0.975, table.size - 1))
    return abs(table.mean()) <= quantile * variance**0.5 + 1e-12
