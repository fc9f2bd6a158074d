"""From rendered answers to a table of encoders, and how to train them at equal compute."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pixio_robot import create_encoder

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow  # every command imports torch


def run(script: str, *words: str | Path, fails: bool = False) -> str:
    process = subprocess.run(
        [sys.executable, f"scripts/{script}.py", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert (process.returncode != 0) == fails, process.stdout
    return process.stdout


def test_encoders_are_compared_once_and_arms_can_be_added(tmp_path: Path) -> None:
    sizes = ["--size", "32", "--episodes-per-task", "8", "--frames-per-episode", "1", "--first-seed", "500000"]
    run("render_frames", tmp_path / "set", "--truth", "--tasks", "reach", "--workers", "1", "--shift", "none", *sizes)
    for family in ("pixio", "mae"):
        for seed in range(2):
            tiny = {"width": 24, "depth": 1, "heads": 2, "image_size": 32}
            create_encoder(f"{family}_vitt16", seed=seed, **tiny).save_pretrained(tmp_path / f"{family}{seed}")
    folder = ["--folder", str(tmp_path / "out")]
    pixio, mae = (f"{name}={tmp_path}/{name}0,{tmp_path}/{name}1" for name in ("pixio", "mae"))
    run("compare_encoders", tmp_path / "set", pixio, *folder)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "records").iterdir()}
    assert len(before) == 9  # the arm's two, two with random weights, pixels, the mean, and three that are told

    sizes = {"width": 24, "depth": 1, "heads": 2, "image_size": 32, "patch_size": 8}
    create_encoder("pixio_vitt16", seed=0, **sizes).save_pretrained(tmp_path / "small")
    others = f"large@48={tmp_path}/pixio0", f"small={tmp_path}/small"
    drawn = ["--draws", "3", "--folder", str(tmp_path / "sizes")]
    run("compare_encoders", tmp_path / "set", pixio, mae, *others, *drawn)
    names = {path.name for path in (tmp_path / "sizes" / "records").iterdir()}
    assert {"random-pixio-24x1-patch_size=16-2.jsonl", "random-pixio-24x1-patch_size=8-2.jsonl"} <= names

    run("compare_encoders", tmp_path / "set", pixio, mae, others[0], *folder)
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "records").iterdir()}
    assert before.items() < after.items()
    assert len(after) == 14
    page = (tmp_path / "out" / "results.md").read_text()
    assert page.count("| pixio − mae | ") == 2  # cameras
    assert page.count("| random mae 24x1 | ") >= 2
    for name in ("colours", "keypoints", "exact place"):
        assert len(re.findall(rf"\| {name} \| \d", page)) == 4, name  # from both grids, of both cameras
    assert all((tmp_path / "out" / picture).is_file() for picture in re.findall(r"\]\((.*\.png)\)", page))
    assert "nan" not in page

    few = ["--episodes", "3", "--folder", str(tmp_path / "few")]
    run("compare_encoders", tmp_path / "set", pixio, *few)
    assert "Learned from 6 frames, measured on 4 " in (tmp_path / "few" / "results.md").read_text()
    answer = run("compare_encoders", tmp_path / "set", pixio, "--episodes", "7", *few[2:], fails=True)
    assert "--episodes 7: there are 6 to learn from" in answer

    answer = run("compare_encoders", tmp_path / "set", pixio, "--grid", "2", *folder, fails=True)
    assert "is of another encoder or other frames" in answer


def test_runs_of_equal_compute_are_planned() -> None:
    printed = run("equal_compute", "vitt16_metaworld", "mae_vitt16_metaworld", "--steps", "500", "--seeds", "2")
    assert "steps=500 seed=0,1 'folder=outputs/arms/vitt16_metaworld-${seed}'" in printed
    spent = re.findall(r"([\d.]+) GFLOP a sample x (\d+) x (\d+) = ([\d.]+) PFLOP", printed)
    (dear, _, steps, budget), (cheap, _, more, same) = [tuple(map(float, row)) for row in spent]
    assert cheap < dear
    assert more > steps
    assert same == pytest.approx(budget, rel=1e-3)


def test_a_mistaken_arm_is_answered_in_one_line(tmp_path: Path) -> None:
    answer = run("compare_encoders", tmp_path, "pixio", fails=True)
    assert answer.startswith("compare_encoders: 'pixio': an arm is NAME=PATH")
    for name in ("pixels", "a/b"):
        assert "has no slash" in run("compare_encoders", tmp_path, f"{name}={tmp_path}", fails=True)
    answer = run("compare_encoders", tmp_path, "pixio@big=somewhere", fails=True)
    assert "such as pixio@192" in answer
