import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from lerobot_env_pixio import paired, wilson
from pixio_robot.errors import SettingError


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 50), (50, 50), (37, 50), (8, 10)])
def test_wilson_is_statsmodels(k: int, n: int) -> None:
    np.testing.assert_allclose(wilson(k, n), proportion_confint(k, n, method="wilson"), atol=1e-12)


@pytest.mark.parametrize(("k", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(k: int, n: int) -> None:
    with pytest.raises(SettingError):
        wilson(k, n)


def outcomes(both: int, only_a: int, only_b: int, neither: int) -> tuple[list[bool], list[bool]]:
    a = [True] * (both + only_a) + [False] * (only_b + neither)
    b = [True] * both + [False] * only_a + [True] * only_b + [False] * neither
    return a, b


@pytest.mark.parametrize("table", [(36, 12, 2, 0), (20, 12, 2, 16), (5, 0, 9, 6), (0, 1, 0, 9)])
def test_paired_counts_and_p_value_are_statsmodels(table: tuple[int, int, int, int]) -> None:
    comparison = paired(*outcomes(*table))
    assert (comparison.both, comparison.only_a, comparison.only_b, comparison.neither) == table
    expected = mcnemar([[table[0], table[1]], [table[2], table[3]]], exact=True)
    assert comparison.p_value == pytest.approx(expected.pvalue)
    assert comparison.low < comparison.difference < comparison.high


@pytest.mark.parametrize(("table", "low", "high"), [((36, 12, 2, 0), 0.0569, 0.3404), ((1, 1, 7, 12), -0.507, -0.026)])
def test_the_interval_is_newcombes(table: tuple[int, int, int, int], low: float, high: float) -> None:
    """Method 10 of Newcombe (1998), as printed there and by Fagerland, Lydersen and Laake (2014)."""
    comparison = paired(*outcomes(*table))
    assert (comparison.low, comparison.high) == pytest.approx((low, high), abs=5e-4)


def test_without_correlation_the_interval_is_that_of_independent_arms() -> None:
    comparison = paired(*outcomes(6, 12, 4, 8))  # 6 * 8 = 12 * 4
    expected = confint_proportions_2indep(18, 30, 10, 30, method="newcomb")
    assert (comparison.low, comparison.high) == pytest.approx(expected)


def test_equal_arms_differ_by_nothing_within_an_interval() -> None:
    comparison = paired([True] * 30, [True] * 30)
    assert (comparison.difference, comparison.p_value) == (0, 1)
    assert comparison.low < -0.05
    assert comparison.high > 0.05


def test_episodes_that_broke_off_are_no_failures() -> None:
    with pytest.raises(SettingError, match=r"broke off.*leave their scenes out"):
        paired([True, None, True], [True, True, True])  # type: ignore[list-item]


def test_arms_of_different_length_are_refused() -> None:
    with pytest.raises(SettingError):
        paired([True, False], [True])
