from itertools import combinations

import pytest

from lerobot_env_pixio import seeds
from pixio_robot.errors import SettingError


def test_the_four_ranges_never_meet() -> None:
    for one, two in combinations((seeds.DEMONSTRATION, seeds.EVALUATION, seeds.FRAMES, seeds.DEVELOPMENT), 2):
        assert one[-1] < two[0] or two[-1] < one[0]


def test_seeds_come_from_their_range() -> None:
    assert seeds.draw(seeds.EVALUATION, 3, first=5) == [1_000_005, 1_000_006, 1_000_007]


@pytest.mark.parametrize(("count", "first"), [(1_000_001, 0), (2, 999_999), (1, -1), (-1, 0)])
def test_no_seed_comes_from_beyond(count: int, first: int) -> None:
    with pytest.raises(SettingError):
        seeds.draw(seeds.DEMONSTRATION, count, first=first)
