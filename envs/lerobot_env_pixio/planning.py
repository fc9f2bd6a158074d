"""How many episodes a comparison needs, before it is run."""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import norm

from pixio_robot.errors import SettingError


def episodes_needed(
    rate_a: float, rate_b: float, *, correlation: float | None = None, power: float = 0.8, level: float = 0.05
) -> int:
    """Give the number of episodes per arm that shows a difference of success rates.

    Args:
        rate_a: The success rate that one arm is believed to have.
        rate_b: That of the other.
        correlation: How the arms' successes on the same scene go together, the phi coefficient, -1 to 1, such as
            `measured_correlation` gives; every arm then plays the same scenes (McNemar's test; Connor 1987, Biometrics
            43, 207-211). None if each arm plays scenes of its own (two proportions).
        power: How likely the difference is to be shown if it is there.
        level: Of the two-sided test.

    Raises:
        SettingError: Rates outside 0 to 1 or equal, or a correlation that two such rates cannot have.
    """
    if not (0 <= rate_a <= 1 and 0 <= rate_b <= 1) or rate_a == rate_b:
        raise SettingError(f"rates {rate_a} and {rate_b}: give two different ones from 0 to 1.")
    if not 0 < level < 1 or not level < power < 1:
        raise SettingError(f"power={power}, level={level}: both lie between 0 and 1, and power above level.")
    sure, able = norm.ppf(1 - level / 2), norm.ppf(power)
    difference = abs(rate_a - rate_b)
    if correlation is None:
        mean = (rate_a + rate_b) / 2
        apart = rate_a * (1 - rate_a) + rate_b * (1 - rate_b)
        root = sure * math.sqrt(2 * mean * (1 - mean)) + able * math.sqrt(apart)
    else:
        disagreeing = _disagreement(rate_a, rate_b, correlation)
        root = sure * math.sqrt(disagreeing) + able * math.sqrt(disagreeing - difference**2)
    return math.ceil((root / difference) ** 2)


def measured_correlation(a: ArrayLike, b: ArrayLike) -> float:
    """Give the phi coefficient of two arms' successes on the same scenes; 0 where one is constant.

    Raises:
        SettingError: Successes of different shape, or none.
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.shape != second.shape or not first.size:
        raise SettingError(f"Successes of shape {list(first.shape)} and {list(second.shape)}: give one each per scene.")
    first, second = first - first.mean(), second - second.mean()
    spread = math.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / spread) if spread else 0.0


def _disagreement(rate_a: float, rate_b: float, correlation: float) -> float:
    """Give the share of scenes that exactly one of the arms solves."""
    spread = math.sqrt(rate_a * (1 - rate_a) * rate_b * (1 - rate_b))
    both = rate_a * rate_b + correlation * spread
    lowest, highest = max(0.0, rate_a + rate_b - 1), min(rate_a, rate_b)
    if not lowest - 1e-12 <= both <= highest + 1e-12:
        possible = [(edge - rate_a * rate_b) / spread if spread else 0.0 for edge in (lowest, highest)]
        raise SettingError(
            f"correlation={correlation}: rates of {rate_a} and {rate_b} allow {possible[0]:.2f} to {possible[1]:.2f}."
        )
    return rate_a + rate_b - 2 * both
