"""The newcomer's command, end to end, at the smallest sizes."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "scripts"))

import comparison

from lerobot_env_pixio import EpisodeRecord
from pixio_robot.errors import SettingError

ROOT = Path(__file__).parents[2]
TINY = ["--rollouts", "3", "--steps", "4", "--demonstrations", "2"]


def quickstart(folder: str, *, at: Path) -> str:
    command = [sys.executable, str(ROOT / "scripts" / "quickstart.py"), "--folder", folder, *TINY]
    process = subprocess.run(command, cwd=at, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.returncode == 0, process.stdout
    return process.stdout


@pytest.mark.slow
def test_the_quickstart_measures_three_policies_and_reports_once(tmp_path: Path) -> None:
    printed = quickstart("out", at=tmp_path)
    rates = re.findall(r"│ (\d/3) +│", printed)
    assert len(rates) == 3
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:video/mp4;base64,") == 3
    assert page.count("data:image/png;base64,") == 2
    assert page.count("<svg") == 2
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", page), "the page must need no other file"
    films = list(tmp_path.glob("out/*/pixio/videos/*.mp4"))
    assert films
    for film in films:
        film.unlink()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    again = quickstart("../out", at=elsewhere)
    assert "roll out" not in again, "what is done must not be done again"
    assert re.findall(r"│ (\d/3) +│", again) == rates
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:video/mp4;base64,") == 2, "a film that was deleted is gone; the others are found"


def test_a_film_is_looked_for_in_the_arms_own_folder_and_may_be_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record names it as it was called from another working directory."""
    facts: dict[str, Any] = {"suite": "metaworld", "task": "reach-v3", "env_seed": 0, "policy_seed": 0, "arm": "blind"}
    facts |= {"encoder": None, "settings": {}, "versions": {}, "success": True, "total_reward": 1.0, "steps": 9}
    record = EpisodeRecord(video="out/reach-v3/blind/videos/blind-0.mp4", **facts)
    monkeypatch.setattr(comparison, "train", lambda *_, **__: (None, [{"step": 1.0, "loss": 2.0}]))
    monkeypatch.setattr(comparison, "measure", lambda *_: [record])
    film = tmp_path / "blind" / "videos" / "blind-0.mp4"
    film.parent.mkdir(parents=True)
    film.write_bytes(b"moving")
    plan = comparison.Plan(task="reach-v3", demonstrations=1, steps=1, rollouts=1)
    arm = comparison.Arm(name="blind", label="Blind", color="#000000", encoder=None)
    assert comparison.run_arm(plan, arm, tmp_path, 1).video == b"moving"
    film.unlink()
    assert comparison.run_arm(plan, arm, tmp_path, 1).video is None


def test_a_folder_is_the_same_from_any_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The random arm's encoder is told where it is, which is part of what its policy is."""
    told: list[str | None] = []

    def stop(_plan: object, arms: list[comparison.Arm], *_: object) -> None:
        told.append(arms[2].source)
        raise KeyboardInterrupt

    monkeypatch.setattr(comparison, "run_plan", stop)
    (tmp_path / "elsewhere").mkdir()
    plan = comparison.Plan(task="reach-v3", demonstrations=1, steps=1, rollouts=1)
    for place, folder in ((tmp_path, "out"), (tmp_path / "elsewhere", "../out")):
        monkeypatch.chdir(place)
        with pytest.raises(KeyboardInterrupt):
            comparison.run([plan], Path(folder), workers=1)
    assert told == [str(tmp_path / "out" / "random_encoder")] * 2


def test_no_workers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="workers=0: must be at least 1"):
        comparison.run([], tmp_path, workers=0)
