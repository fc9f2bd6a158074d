"""What the quickstart's page says in words, from records that are made up."""

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "scripts"))

import report

from lerobot_env_pixio import EpisodeRecord

SCENES = 50


def arm(name: str, solved: range) -> report.ArmResult:
    facts: dict[str, Any] = {"suite": "metaworld", "task": "reach-v3", "policy_seed": 0, "arm": name, "encoder": None}
    facts |= {"total_reward": 0.0, "steps": 9, "settings": {}, "versions": {}}
    records = [EpisodeRecord(env_seed=scene, success=scene in solved, **facts) for scene in range(SCENES)]
    return report.ArmResult(name=name, label=name, color="#000000", records=records, losses=[], video=None)


@pytest.mark.parametrize(
    ("pixio", "blind", "random", "said"),
    [
        (range(30), range(21), range(21), ("Seeing helps", "Pre-training helps")),  # 9 to 0, though intervals overlap
        (range(21), range(30), range(30), ("Seeing hurts", "Pre-training hurts")),
        (range(30), range(21), range(1, 30), ("Seeing helps", "A frozen encoder with random weights passes")),
        (range(25), range(24), range(26), ("Whether seeing helps cannot be told", "cannot be told apart")),
    ],
)
def test_the_page_says_what_its_table_of_paired_seeds_shows(
    pixio: range, blind: range, random: range, said: tuple[str, str]
) -> None:
    arms = [arm("pixio", pixio), arm("blind", blind), arm("random", random)]
    _, _, _, *sentences = report.reading(arms)
    for sentence, words in zip(sentences, said, strict=False):
        assert words in sentence
    surely = float(report.compare(arms[0], arms[1])["p"]) < 0.05
    assert ("cannot" in sentences[0]) != surely
