"""How often the intervals hold what they should: simulated studies, ``python -m lerobot_env_pixio.coverage``.

A simulated study draws how good each training seed is and how hard each scene is, both normal on the probit scale, and
plays every seed on every scene. What an interval should hold is the rate over all seeds and scenes there could be.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from lerobot_env_pixio.crossed import PooledRate, paired_pooled, pooled
from lerobot_env_pixio.statistics import paired, wilson


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a simulated study is like.

    Attributes:
        seeds: Training seeds of each arm.
        scenes: Scenes, the same for all.
        rates: True success rates of the two arms.
        seed_spread: Standard deviation of how good seeds are, on the probit scale.
        scene_spread: Standard deviation of how hard scenes are, on the same scale, where each episode's own luck is 1.
    """

    seeds: int
    scenes: int
    rates: tuple[float, float]
    seed_spread: float
    scene_spread: float = 1.0

    def draw(self, random: np.random.Generator) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Play it once: two tables of successes [seeds scenes]."""
        scale = (1 + self.seed_spread**2 + self.scene_spread**2) ** 0.5
        scenes = self.scene_spread * random.normal(size=self.scenes)
        tables = []
        for rate in self.rates:
            skill = norm.ppf(rate) * scale + self.seed_spread * random.normal(size=(self.seeds, 1))
            tables.append(skill + scenes + random.normal(size=(self.seeds, self.scenes)) > 0)
        return tables[0], tables[1]


USUAL = ((0.5, 0.3), (0.8, 0.6), (0.9, 0.9))
EXTREME = ((0.97, 0.03), (0.3, 0.05), (0.05, 0.001))
STUDIES = tuple(
    Study(seeds=seeds, scenes=50, rates=rates, seed_spread=spread)
    for seeds, pairs in ((2, USUAL), (3, USUAL + EXTREME), (5, USUAL))
    for rates in pairs
    for spread in (0.0, 0.2, 0.5)
)
"""From policies that all come out alike to such that one training in three goes wrong by far."""

Interval = Callable[[NDArray[np.bool_], NDArray[np.bool_]], tuple[float, float]]


def hierarchical_bootstrap(*arms: NDArray[np.bool_], resamples: int = 500) -> tuple[float, float]:
    """Give the percentile interval of a crossed bootstrap, the field's usual one, which `crossed` is compared with.

    Seeds are drawn anew with replacement, each arm's for itself; so are scenes, the same for all seeds and both arms
    (Owen 2007, https://arxiv.org/abs/0712.1111).

    Args:
        *arms: Successes [seeds scenes]: of one method for its rate, or of two for their difference, on the same scenes.
        resamples: How often to draw anew.
    """
    random, scenes = np.random.default_rng(0), arms[0].shape[1]
    # How often each scene, and each seed, is drawn: then the means of all resamples are a product of matrices.
    drawn = random.multinomial(scenes, np.full(scenes, 1 / scenes), size=resamples) / scenes
    means = np.zeros(resamples)
    for sign, table in zip((1, -1), arms, strict=False):
        seeds = len(table)
        weights = random.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds
        means += sign * np.einsum("rs,se,re->r", weights, table, drawn, optimize=True)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def _ends(result: PooledRate) -> tuple[float, float]:
    return result.low, result.high


INTERVALS: dict[str, tuple[Interval, bool]] = {
    "rate": (lambda a, _: _ends(pooled(a)), False),
    "rate, bootstrap": (lambda a, _: hierarchical_bootstrap(a), False),
    "difference": (lambda a, b: _ends(paired_pooled(a, b)), True),
    "difference, bootstrap": (hierarchical_bootstrap, True),
}
"""Name to what gives the interval, and whether it is of a difference."""


def coverage(interval: Interval, study: Study, *, of_difference: bool, studies: int = 2000) -> float:
    """Give the share of simulated studies whose interval holds the truth."""
    random = np.random.default_rng(0)
    truth = study.rates[0] - study.rates[1] if of_difference else study.rates[0]
    held = 0
    for _ in range(studies):
        low, high = interval(*study.draw(random))
        held += low <= truth <= high
    return held / studies


def single_seed_coverage(study: Study, *, studies: int = 2000) -> tuple[float, float]:
    """Give the coverage of `wilson` and of `paired`, which answer for one trained policy each on new scenes."""
    random, held = np.random.default_rng(0), np.zeros(2)
    alone = Study(seeds=1, scenes=study.scenes, rates=study.rates, seed_spread=0.0, scene_spread=study.scene_spread)
    for _ in range(studies):
        a, b = (table[0] for table in alone.draw(random))
        low, high = wilson(int(a.sum()), len(a))
        comparison = paired(list(a), list(b))
        held += [low <= study.rates[0] <= high, comparison.low <= study.rates[0] - study.rates[1] <= comparison.high]
    return float(held[0] / studies), float(held[1] / studies)


def table_lines(studies: int) -> Iterator[str]:
    """Give a Markdown table, line by line as it is computed."""
    yield "| seeds | scenes | rates | spread of seeds | " + " | ".join(INTERVALS) + " |"
    yield "| --- " * (4 + len(INTERVALS)) + "|"
    for study in STUDIES:
        shares = [coverage(one, study, of_difference=paired_, studies=studies) for one, paired_ in INTERVALS.values()]
        cells = " | ".join(f"{share:.1%}" for share in shares)
        yield f"| {study.seeds} | {study.scenes} | {study.rates} | {study.seed_spread} | {cells} |"
    for rates in ((0.5, 0.3), (0.8, 0.6), (0.9, 0.9)):
        one, two = single_seed_coverage(Study(seeds=1, scenes=50, rates=rates, seed_spread=0.0), studies=studies)
        yield f"| 1 | 50 | {rates} | | wilson {one:.1%} | | paired {two:.1%} | |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--studies", type=int, default=2000, help="simulated studies of each kind")
    for line in table_lines(parser.parse_args().studies):
        print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
