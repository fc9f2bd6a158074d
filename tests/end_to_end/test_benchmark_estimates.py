"""The benchmark's estimates: rates, differences, and the shares that are kept under a shift."""

import numpy as np
import pytest
from benchmark import estimates, shares
from scipy.stats import norm

from lerobot_env_pixio import paired, wilson

WIDEST = 0.4
"""What an interval of a share may span on average; one that told nothing would span 2."""


@pytest.mark.parametrize(
    ("seeds", "scenes", "rate", "share"), [(3, 50, 0.7, 0.6), (1, 50, 0.8, 0.5), (5, 40, 0.5, 0.9)]
)
def test_the_interval_of_the_share_that_is_kept_covers_the_truth(
    seeds: int, scenes: int, rate: float, share: float
) -> None:
    """300 studies; one whose seeds are all equally good, as the variance then is known to be of chance alone."""
    random, covered, told, widths = np.random.default_rng(0), 0, 0, []
    for _ in range(300):
        luck = random.random((seeds, scenes))
        found = shares.share_kept(luck < rate, luck < rate * share)
        if found is not None:
            told += 1
            widths.append(found.high - found.low)
            covered += found.low <= share <= found.high
    assert told >= 290
    assert 0.92 <= covered / told <= 0.99
    assert np.mean(widths) < WIDEST


@pytest.mark.parametrize(("seeds", "scenes"), [(3, 50), (1, 100)])
def test_the_interval_of_a_difference_of_shares_covers_the_truth(seeds: int, scenes: int) -> None:
    """300 studies of arms that keep nine and six tenths, on scenes whose difficulty they share."""
    random, covered, told, widths = np.random.default_rng(0), 0, 0, []
    for _ in range(300):
        hard = random.random((seeds, scenes))
        found = shares.more_kept((hard < 0.7, hard < 0.7 * 0.9), (hard < 0.5, hard < 0.5 * 0.6))
        if found is not None:
            told += 1
            widths.append(found.high - found.low)
            covered += found.low <= 0.3 <= found.high
    assert told >= 270
    assert 0.92 <= covered / told <= 0.99
    assert np.mean(widths) < WIDEST


def test_a_difference_of_shares_pairs_scenes_and_wants_both_shares() -> None:
    scenes = np.arange(60).reshape(2, 30) % 3
    mine, theirs = (scenes > 0, scenes > 0), (scenes > 0, scenes > 1)
    found = shares.more_kept(mine, theirs)
    assert found is not None
    assert found.value == pytest.approx(0.5)
    assert 0 < found.low < 0.5 < found.high
    assert shares.more_kept(mine, (np.zeros((2, 30), bool),) * 2) is None


def test_an_arm_of_one_seed_is_compared_by_all_seeds_of_the_other() -> None:
    one, two = np.arange(40)[None] % 2 == 0, np.stack([np.arange(40) % 4 == 0, np.zeros(40, bool)])
    found = estimates.difference_of(one, two)
    assert found.value == pytest.approx(0.5 - 0.125)
    assert found.low < found.value < found.high
    assert estimates.difference_of(two, one).value == pytest.approx(-found.value)


@pytest.mark.parametrize("solved", [40, 25])
def test_arms_of_unequal_seeds_whose_scenes_all_differ_alike_do_not_differ_for_certain(solved: int) -> None:
    one = np.arange(40)[None] < solved
    alike = estimates.difference_of(one, np.tile(one, (3, 1)))
    alone = paired(one[0].tolist(), one[0].tolist())
    assert (alike.value, alike.low, alike.high) == pytest.approx((0.0, alone.low, alone.high))
    half = estimates.difference_of(np.ones((1, 40), bool), np.stack([one[0], ~one[0]]))
    assert (half.value, half.high <= 1.0) == (0.5, True)
    assert half.low < 0.45


def test_one_scene_for_several_seeds_tells_little_and_breaks_no_report() -> None:
    """The first arm's seeds all solve it, and of the second's one of three."""
    first, second = np.ones((3, 1), bool), np.array([[True], [False], [False]])
    found = estimates.difference_of(first, second)
    assert found.value == pytest.approx(2 / 3)
    assert found.low < 0 < found.high <= 1
    assert shares.share_kept(first, second) is None


def test_the_mean_over_tasks_is_narrower_than_its_parts() -> None:
    one = estimates.Estimate(value=0.5, low=0.4, high=0.7)
    mean = estimates.over_tasks([one] * 4)
    assert (mean.value, mean.low, mean.high) == pytest.approx((0.5, 0.45, 0.6))


@pytest.mark.parametrize("shared", [True, False])
def test_the_mean_over_tasks_holds_the_truth_even_if_a_seed_is_good_or_bad_at_all_tasks(shared: bool) -> None:
    """Six tasks, three seeds, true rate 0.3. Seeds taken as others on every task would fail the first."""
    random, held = np.random.default_rng(0), 0
    middle = norm.ppf(0.3) * (1 + 0.5**2 + 1) ** 0.5
    for _ in range(200):
        skill = random.normal(size=(1, 3, 1)) if shared else random.normal(size=(6, 3, 1))
        luck = random.normal(size=(6, 1, 50)) + random.normal(size=(6, 3, 50))
        found = estimates.over_tasks([estimates.rate_of(table) for table in middle + 0.5 * skill + luck > 0])
        held += found.low <= 0.3 <= found.high
    assert held / 200 > 0.88


def test_shares_of_several_tasks_that_fall_together_leave_their_mean_in_doubt() -> None:
    clean = np.ones((3, 40), bool)
    shifted = np.stack([np.arange(40) % 10 < kept for kept in (2, 5, 8)])
    one = shares.share_kept(clean, shifted)
    assert one is not None
    alone, mean = one.high - one.low, estimates.over_tasks([one] * 4)
    assert mean.value == pytest.approx(0.5)
    assert mean.high - mean.low == pytest.approx(alone, rel=0.2)  # seeds of their own would halve it


def test_a_share_without_successes_cannot_be_told_and_one_without_change_is_not_certain() -> None:
    none, some = np.zeros((2, 10), bool), np.arange(20).reshape(2, 10) % 2 == 0
    assert shares.share_kept(none, some) is None
    found = shares.share_kept(some, some)
    assert found is not None
    assert found.value == 1.0
    assert found.low < 0.8
    assert found.high > 1.2
    assert shares.share_kept(np.arange(20).reshape(2, 10) == 0, none) is None
    lost = shares.share_kept(np.ones((2, 10), bool), none)
    assert lost is not None
    assert (lost.value, lost.low) == (0.0, 0.0)
    assert lost.high == pytest.approx(wilson(0, 10)[1] / wilson(10, 10)[0])


def test_an_arm_that_lost_all_its_successes_is_not_known_exactly() -> None:
    """It keeps nothing, and the other five eighths; what the first may have kept is in doubt all the same."""
    easy = np.tile(np.arange(100) % 10, (3, 1))
    mine, theirs = (easy < 8, easy < 5), (easy < 8, easy < 0)
    alone, lost, both = shares.share_kept(*mine), shares.share_kept(*theirs), shares.more_kept(mine, theirs)
    assert alone is not None
    assert lost is not None
    assert both is not None
    assert 0.02 < lost.high < 0.1
    assert both.low == pytest.approx(alone.low - lost.high)
    assert both.high == pytest.approx(alone.high)
