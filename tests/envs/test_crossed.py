import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.proportion import proportion_effectsize

from lerobot_env_pixio import episodes_needed, measured_correlation, paired_pooled, pooled
from lerobot_env_pixio.coverage import INTERVALS, Study, coverage, hierarchical_bootstrap, single_seed_coverage
from lerobot_env_pixio.statistics import paired, wilson
from pixio_robot.errors import SettingError


@pytest.fixture
def tables() -> tuple[np.ndarray, np.ndarray]:
    return Study(seeds=3, scenes=40, rates=(0.7, 0.5), seed_spread=0.3).draw(np.random.default_rng(3))


def test_the_variance_is_that_of_an_analysis_of_variance_by_hand() -> None:
    """Two seeds, two scenes: mean squares 1/4 for seeds, 1/4 for scenes, 1/4 for the rest, so the variance is 1/16."""
    result = pooled([[1, 1], [1, 0]])
    quantile = stats.t.ppf(0.975, 1)
    share = quantile**2 / (0.75 * 0.25 / (0.25 / 4))
    middle = (0.75 + share / 2) / (1 + share)
    assert result.value == 0.75
    assert (result.low + result.high) / 2 == pytest.approx(middle)
    assert result.per_seed == ((1.0, 0.5),)


def test_seeds_that_are_all_alike_are_one_seed() -> None:
    row = np.arange(50) < 35
    assert pooled([row] * 3).low == pytest.approx(wilson(35, 50)[0], abs=0.01)
    assert (pooled(np.ones((3, 50))).low, pooled(np.ones((3, 50))).high) == wilson(50, 50)


@pytest.mark.parametrize("solved", [50, 35])  # the means of the second do not round to nothing
def test_equal_arms_differ_by_what_one_seed_cannot_rule_out(solved: int) -> None:
    same = np.tile(np.arange(50) < solved, (3, 1))
    result, alone = paired_pooled(same, same), paired(list(same[0]), list(same[0]))
    assert (result.value, result.low, result.high) == (0, alone.low, alone.high)


def test_a_difference_turns_round_with_its_arms(tables: tuple[np.ndarray, np.ndarray]) -> None:
    one, other = paired_pooled(*tables), paired_pooled(*reversed(tables))
    assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low))
    assert one.value == pytest.approx(tables[0].mean() - tables[1].mean())


@pytest.mark.parametrize("odd", [1, 2])
def test_an_interval_does_not_depend_on_the_order_of_scenes_nor_on_what_is_called_success(odd: int) -> None:
    random, found = np.random.default_rng(0), set()
    for _ in range(40):
        table = np.zeros((3, 50), bool)
        table.flat[random.choice(table.size, odd, replace=False)] = True
        if len(np.flatnonzero(table.any(axis=0))) < odd or len(np.flatnonzero(table.any(axis=1))) > 1:
            continue  # of another shape than the others
        mirrored = pooled(~table)
        found |= {round(pooled(table).high, 6), round(1 - mirrored.low, 6)}
    assert len(found) == 1


def test_shared_difficulty_of_scenes_falls_out_of_a_difference() -> None:
    hard = np.tile(np.arange(60) % 2 == 0, (3, 1))
    other = hard.copy()
    other[:, 1] = True
    apart = pooled(hard)
    together = paired_pooled(other, hard)
    assert together.high - together.low < (apart.high - apart.low) / 3


def test_more_scenes_and_more_seeds_narrow_the_interval() -> None:
    widths = []
    for seeds, scenes in ((3, 50), (3, 400), (12, 400)):
        study = Study(seeds=seeds, scenes=scenes, rates=(0.6, 0.6), seed_spread=0.3)
        results = [pooled(study.draw(np.random.default_rng(seed))[0]) for seed in range(20)]
        widths.append(np.mean([result.high - result.low for result in results]))
    assert widths[0] > widths[1] > widths[2]


def test_arms_need_the_same_scenes_but_not_as_many_seeds(tables: tuple[np.ndarray, np.ndarray]) -> None:
    assert len(paired_pooled(tables[0][:2], tables[1]).per_seed[0]) == 2
    with pytest.raises(SettingError, match="same scenes"):
        paired_pooled(tables[0][:, 1:], tables[1])


@pytest.mark.parametrize("bad", [[1, 0, 1], [[1, 0, 1]], [[1], [0]], [[1, 0], [2, 0]]])
def test_what_is_no_table_of_seeds_and_scenes_is_refused(bad: list) -> None:
    with pytest.raises(SettingError):
        pooled(bad)


def test_the_bootstrap_redraws_seeds_and_scenes(tables: tuple[np.ndarray, np.ndarray]) -> None:
    """Its spread is Owen's formula for a crossed bootstrap, which is exact."""
    table = tables[0].astype(float)
    random, means = np.random.default_rng(0), []
    for _ in range(4000):
        rows, columns = random.integers(3, size=3), random.integers(40, size=40)
        means.append(table[np.ix_(rows, columns)].mean())
    assert hierarchical_bootstrap(table, resamples=4000) == pytest.approx(
        tuple(np.quantile(means, (0.025, 0.975))), abs=0.02
    )


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.6), (0.8, 0.9), (0.3, 0.7)])
def test_unpaired_episodes_agree_with_statsmodels(a: float, b: float) -> None:
    """Which counts on the arcsine scale, and so differs by a few."""
    expected = NormalIndPower().solve_power(proportion_effectsize(a, b), power=0.8, alpha=0.05)
    assert episodes_needed(a, b) == pytest.approx(expected, rel=0.03, abs=2)


def test_paired_episodes_are_connors() -> None:
    """Rates of 0.8 and 0.6 with 0.05 and 0.25 of the scenes solved by one arm only: by hand 56.8."""
    both = 0.8 - 0.25
    correlation = (both - 0.8 * 0.6) / np.sqrt(0.8 * 0.2 * 0.6 * 0.4)
    by_hand = ((1.959964 * np.sqrt(0.3) + 0.841621 * np.sqrt(0.3 - 0.04)) / 0.2) ** 2
    assert episodes_needed(0.8, 0.6, correlation=float(correlation)) == np.ceil(by_hand) == 57
    assert episodes_needed(0.8, 0.6, correlation=0.6) < episodes_needed(0.8, 0.6) / 2


@pytest.mark.parametrize(
    "wrong",
    [{"rate_b": 0.8}, {"rate_b": 1.2}, {"correlation": 0.99}, {"power": 0.01}, {"level": 0}],
)
def test_plans_that_cannot_be_are_refused(wrong: dict) -> None:
    with pytest.raises(SettingError):
        episodes_needed(**{"rate_a": 0.8, "rate_b": 0.6, **wrong})


def test_correlation_is_measured_on_shared_scenes() -> None:
    assert measured_correlation([1, 1, 0, 0], [1, 1, 0, 0]) == pytest.approx(1)
    assert measured_correlation([1, 1, 0, 0], [1, 0, 1, 0]) == pytest.approx(0)
    assert measured_correlation([1, 1], [1, 0]) == 0
    with pytest.raises(SettingError):
        measured_correlation([1, 0], [1])


@pytest.mark.slow
@pytest.mark.parametrize("correlation", [0.3, 0.6])
def test_the_planned_number_of_scenes_has_the_promised_power(correlation: float) -> None:
    needed, random = episodes_needed(0.7, 0.5, correlation=correlation), np.random.default_rng(0)
    both = 0.35 + correlation * np.sqrt(0.7 * 0.3 * 0.5 * 0.5)
    table = (both, 0.7 - both, 0.5 - both, both - 0.2)
    shown = 0
    for _ in range(2000):
        counts = random.multinomial(needed, table)
        a = np.repeat([True, True, False, False], counts)
        b = np.repeat([True, False, True, False], counts)
        shown += paired(a.tolist(), b.tolist()).p_value < 0.05
    assert 0.72 < shown / 2000 < 0.84  # the exact test is a little shy of the nominal 0.8


def test_a_difference_of_seeds_that_are_all_alike_is_newcombes() -> None:
    """But for his correction for continuity, and for Student's quantile."""
    a, b = np.arange(200) < 190, (np.arange(200) % 7 == 0) | (np.arange(200) < 6)
    many, one = paired_pooled(np.tile(a, (4, 1)), np.tile(b, (4, 1))), paired(list(a), list(b))
    assert (many.low, many.high) == pytest.approx((one.low, one.high), abs=0.006)


def test_a_difference_from_an_arm_that_never_succeeds_reaches_as_far_as_either_may() -> None:
    never = np.zeros((3, 50), bool)
    other = never.copy()
    other[:, 3], other[1, 7] = True, True
    found, alone = paired_pooled(other, never), pooled(other)
    reach_of_never = wilson(0, 50)[1]
    assert found.high == pytest.approx(alone.high)  # a rate below none there is not
    assert found.value - found.low == pytest.approx(np.hypot(alone.value - alone.low, reach_of_never))


@pytest.mark.slow
@pytest.mark.parametrize("rates", [(0.05, 0.001), (0.97, 0.03)])
@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_a_difference_from_nearly_never_holds_the_truth(rates: tuple[float, float], spread: float) -> None:
    study = Study(seeds=3, scenes=50, rates=rates, seed_spread=spread)
    assert coverage(INTERVALS["difference"][0], study, of_difference=True) > 0.94


@pytest.mark.slow
@pytest.mark.parametrize("rates", [(0.5, 0.3), (0.8, 0.6)])
@pytest.mark.parametrize(("seeds", "spread"), [(3, 0.0), (3, 0.2), (3, 0.5), (5, 0.0), (5, 0.2), (5, 0.5)])
def test_intervals_hold_the_truth_as_often_as_they_say(seeds: int, spread: float, rates: tuple[float, float]) -> None:
    study = Study(seeds=seeds, scenes=50, rates=rates, seed_spread=spread)
    for name in ("rate", "difference"):
        interval, of_difference = INTERVALS[name]
        share = coverage(interval, study, of_difference=of_difference, studies=2000)
        assert 0.925 < share < 0.98, name


@pytest.mark.slow
@pytest.mark.parametrize("rates", [(0.5, 0.3), (0.8, 0.6)])
def test_intervals_of_one_seed_hold_the_truth_for_that_seed(rates: tuple[float, float]) -> None:
    shares = single_seed_coverage(Study(seeds=1, scenes=50, rates=rates, seed_spread=0.0))
    assert all(0.93 < share < 0.97 for share in shares)


@pytest.mark.slow
def test_the_bootstrap_of_few_unlike_seeds_is_too_narrow() -> None:
    study = Study(seeds=3, scenes=50, rates=(0.5, 0.5), seed_spread=0.5)
    shares = [
        coverage(INTERVALS[name][0], study, of_difference=False, studies=150) for name in INTERVALS if "rate" in name
    ]
    assert shares[1] < shares[0]
