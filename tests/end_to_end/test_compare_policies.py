"""The table of compare_policies.py, from cells that are made up."""

import argparse
import sys
from pathlib import Path
from typing import Any

import compare_policies as script
import pytest
from benchmark.cells import Cell, Worked, cell_folder, finish

from lerobot_env_pixio import EpisodeRecord, find_task, write_records
from pixio_robot.errors import DataError

SCENES = 40
TASK = find_task("metaworld", "reach-v3")


@pytest.fixture
def options(tmp_path: Path) -> argparse.Namespace:
    given: dict[str, Any] = {"task": "reach-v3", "demonstrations": 2, "minutes": 1.0, "batch_size": 4}
    return argparse.Namespace(folder=tmp_path / "out", rollouts=SCENES, **given)


def fill(options: argparse.Namespace, arm: str, seed: int, solved: int) -> None:
    cell = Cell(task=TASK, policy="act", arm=arm, seed=seed)
    home = cell_folder(options.folder, cell)
    facts: dict[str, Any] = {"suite": "metaworld", "task": options.task, "policy_seed": seed, "arm": arm, "steps": 9}
    facts |= {"encoder": None, "total_reward": 0.0, "settings": {}, "versions": {}}
    played = [EpisodeRecord(env_seed=one, success=one < solved, **facts) for one in range(SCENES)]
    write_records(home / "records_clean.jsonl", played)
    finish(home, {"steps": 5, "train_seconds": 1.0, "cache_seconds": 0.0, "loss": 1.0})


def test_a_difference_and_its_interval_are_of_the_same_seeds(options: argparse.Namespace) -> None:
    """Three seeds of one arm, whose first is the worst, and one of the other."""
    for seed, solved in enumerate((10, 30, 38)):
        fill(options, "pixio", seed, solved)
    fill(options, "resnet", 0, 12)
    script.write_results(TASK, options)
    text = (options.folder / "results.md").read_text()
    assert "| ACT, frozen Pixio features | 5, 5, 5 | 20 | 10/40, 30/40, 38/40 | 78/120, 65% | " in text
    (line,) = [line for line in text.splitlines() if line.startswith("- ")]
    value, low, high = (int(word.strip("().")) for word in line.split() if word.strip("().+-").isdigit())
    assert value == 35
    assert 0 < low < value < high


def test_a_table_of_no_cells_is_none(options: argparse.Namespace, capsys: pytest.CaptureFixture[str]) -> None:
    script.write_results(TASK, options)
    assert "No cell is done yet." in capsys.readouterr().out


def test_a_folder_is_of_one_comparison(options: argparse.Namespace) -> None:
    script.claim(options)
    script.claim(options)
    options.batch_size = 8
    with pytest.raises(DataError, match="batch_size: 4 there, 8 wanted"):
        script.claim(options)


def test_a_task_is_looked_up_before_the_folder_is_claimed_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A typo leaves no trace, and a task's short name is the same task."""
    asked: list[str] = []
    monkeypatch.setattr(script, "collect_demonstrations", lambda folder, suite, task, **_: asked.append(task))
    monkeypatch.setattr(script, "work", lambda *_: Worked(failed={}, elsewhere=[]))
    words = ["compare_policies.py", "--folder", str(tmp_path / "out"), "--task"]
    monkeypatch.setattr(sys, "argv", [*words, "pick-plcae"])
    with pytest.raises(SystemExit, match="Did you mean 'pick-place-v3'"):
        script.main()
    assert not (tmp_path / "out").exists()
    for name in ("pick-place", "pick-place-v3"):
        monkeypatch.setattr(sys, "argv", [*words, name])
        script.main()
    assert asked == ["pick-place-v3"] * 2
