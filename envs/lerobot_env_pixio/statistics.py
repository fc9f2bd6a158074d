"""Success rates with their uncertainty, and the fair comparison of two arms on the same scenes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from pixio_robot.errors import SettingError


def wilson(k: int, n: int) -> tuple[float, float]:
    """Give the 95 % Wilson score interval of a rate of k successes in n episodes (no continuity correction).

    Raises:
        SettingError: n < 1, or k outside 0 to n.
    """
    if not 0 <= k <= n or n < 1:
        raise SettingError(f"{k} successes in {n} episodes: at least one episode is needed, and 0 <= k <= n.")
    interval = binomtest(k, n).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True, kw_only=True)
class PairedComparison:
    """How arm a fares against arm b on the same scenes.

    Attributes:
        n: Scenes.
        both: Scenes that both solve.
        only_a: Scenes that only a solves.
        only_b: Scenes that only b solves.
        neither: Scenes that none solves.
        difference: Success rate of a minus that of b.
        low: Lower end of the 95 % interval of the difference.
        high: Its upper end.
        p_value: Two-sided exact McNemar test: how likely a split of the scenes that only one of them solves is, at
            least as uneven as this, if the arms were equal.
    """

    n: int
    both: int
    only_a: int
    only_b: int
    neither: int
    difference: float
    low: float
    high: float
    p_value: float


def paired(a: Sequence[bool], b: Sequence[bool]) -> PairedComparison:
    """Compare two arms by their successes on the same scenes, in the same order.

    The interval is Newcombe's for paired proportions (1998, Statistics in Medicine 17, 2635-2650, method 10): a square
    and add of the two Wilson intervals, corrected for their correlation. It stays sensible where both arms always
    succeed, or none ever does, which a normal approximation does not.

    Raises:
        SettingError: Vectors of different lengths, empty ones, or an episode that has no success because it broke off.
    """
    if any(success is None for success in (*a, *b)):
        raise SettingError("Some episodes broke off, and are nobody's failure: leave their scenes out, for both arms.")
    first, second = np.asarray(a, bool), np.asarray(b, bool)
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise SettingError(f"Paired arms need one success per scene each; given {first.shape} and {second.shape}.")
    both, only_a = int((first & second).sum()), int((first & ~second).sum())
    only_b, neither = int((~first & second).sum()), int((~first & ~second).sum())
    low, high = _newcombe(both, only_a, only_b, neither)
    split = only_a + only_b
    return PairedComparison(
        n=len(first),
        both=both,
        only_a=only_a,
        only_b=only_b,
        neither=neither,
        difference=(only_a - only_b) / len(first),
        low=low,
        high=high,
        p_value=float(binomtest(only_a, split).pvalue) if split else 1.0,
    )


def _newcombe(both: int, only_a: int, only_b: int, neither: int) -> tuple[float, float]:
    n = both + only_a + only_b + neither
    k_a, k_b = both + only_a, both + only_b
    (low_a, high_a), (low_b, high_b) = wilson(k_a, n), wilson(k_b, n)
    down_a, up_a = k_a / n - low_a, high_a - k_a / n
    down_b, up_b = k_b / n - low_b, high_b - k_b / n
    phi = _correlation(both, only_a, only_b, neither)
    difference = (k_a - k_b) / n
    low = difference - np.sqrt(down_a**2 - 2 * phi * down_a * up_b + up_b**2)
    high = difference + np.sqrt(up_a**2 - 2 * phi * up_a * down_b + down_b**2)
    return float(low), float(high)


def _correlation(both: int, only_a: int, only_b: int, neither: int) -> float:
    """The phi coefficient with Newcombe's continuity correction of positive agreement; 0 where a margin is empty."""
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    if margins == 0:
        return 0.0
    agreement = both * neither - only_a * only_b
    if agreement > 0:
        agreement = max(agreement - (both + only_a + only_b + neither) / 2, 0)
    return agreement / margins**0.5
