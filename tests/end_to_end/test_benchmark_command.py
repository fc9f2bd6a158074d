"""The benchmark's command: killed and taken up again, shared out, and given wrong words."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pixio_robot import create_encoder

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow  # every command imports torch and LeRobot


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "scripts/run_benchmark.py", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(*words: str, fails: bool = False) -> str:
    process = start(*words)
    printed, _ = process.communicate()
    assert (process.returncode != 0) == fails, printed
    return printed


def kill_once_there_is(pattern: str, folder: Path, *words: str) -> None:
    """Start the command, and kill it and its simulators as soon as a file is there."""
    process = start(*words)
    while not list(folder.glob(pattern)):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def words(tmp_path: Path, folder: Path) -> list[str]:
    encoder = tmp_path / "encoder"
    if not encoder.exists():
        create_encoder("pixio_vitt16", seed=0, width=32, depth=1, heads=2, image_size=64).save_pretrained(encoder)
    sizes = ["demonstrations=2", "episodes=2", "training.act.steps=6", "training.act.batch_size=4", "save_every=2"]
    sizes += ["size=64", "seeds=[0]", "videos=0", "threads=1", "tasks=[metaworld/reach]", "variants=1"]
    return ["tier=smoke", f"folder={folder}", f"arms.pixio={encoder}", "without=[state,random,cnn]", *sizes]


def tables(folder: Path) -> str:
    """All tables but that of the cost."""
    page = (folder / "results.md").read_text().partition("**CPU seconds**")[0]
    return "\n".join(line for line in page.splitlines() if line.startswith(("|", "**")))


def test_a_benchmark_that_is_killed_three_times_gives_the_same_table(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    printed = run(*words(tmp_path, whole))
    assert "2 of 2 cells are done" in printed
    assert "'random' is off" in printed
    assert list(whole.glob("tasks/*/demonstrations.pixio_cache/*-1variants-*.zarr"))
    again = words(tmp_path, killed)
    kill_once_there_is("tasks/*/demonstrations.staging/*.npz", killed, *again)
    kill_once_there_is("cells/*/*/pixio-0/run/checkpoints/[0-9]*", killed, *again)
    assert not (killed / "report.html").exists()
    kill_once_there_is("cells/*/*/pixio-0/records_clean.jsonl", killed, *again)
    printed = run(*again)
    assert "2 of 2 cells are done" in printed
    assert tables(killed) == tables(whole)
    for name in ("pixio-0", "blind-0"):
        for condition in ("clean", "strong"):
            one, two = (next(folder.glob(f"cells/*/*/{name}/records_{condition}.jsonl")) for folder in (whole, killed))
            assert one.read_bytes() == two.read_bytes()
    facts = json.loads(next(killed.glob("cells/*/*/pixio-0/cell.json")).read_text())
    assert facts["taken_up"] is True
    untouched = {path: path.stat().st_mtime_ns for path in killed.rglob("*.jsonl")}
    assert "roll out" not in run(*again)
    assert {path: path.stat().st_mtime_ns for path in killed.rglob("*.jsonl")} == untouched
    refused = run(*again, "episodes=3", fails=True)
    assert "run_benchmark: " in refused
    assert "episodes: 2 there, 3 wanted" in refused


def test_the_quickstart_measures_three_policies_on_one_page(tmp_path: Path) -> None:
    sizes = ["demonstrations=2", "episodes=3", "training.act.steps=4", "threads=1", "workers=2"]
    printed = run("tier=quickstart", f"folder={tmp_path / 'out'}", *sizes)
    assert "3 of 3 cells are done" in printed
    assert len(re.findall(r"│ \d+ \(\d+ to \d+\) ", printed)) == 3, printed
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:video/mp4;base64,") >= 3
    assert page.count("data:image/png;base64,") == 3, "what two encoders say, and what one learnt"
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", page), "the page must need no other file"


def test_mistakes_are_answered_in_one_line(tmp_path: Path) -> None:
    for wrong, answer in (
        (["tier=smok"], "run_benchmark: No tier is called 'smok'. Did you mean 'smoke'?"),
        (["tier=smoke", "arms.mine=PATH"], "run_benchmark: There is no arms.mine yet: write +arms.mine=... to add it."),
        (["tier=smoke", "seeds=0"], "run_benchmark: seeds: a list is wanted, as in 'seeds=[VALUE]'."),
        (["tier=smoke", "seads=[0]"], "run_benchmark: No setting is called 'seads'. Did you mean 'seeds'?"),
        (["tier=smoke", "tasks=[adroit/pen]"], "run_benchmark: adroit/pen has no scripted expert."),
        (["tier=smoke", "tasks=[adroit/pen]", f"+datasets={{adroit/pen: {tmp_path}}}"], "There is no LeRobotDataset"),
        (["tier=smoke", "+cameras={metaworld/reach: [cornr]}"], "Did you mean 'corner'?"),
    ):
        printed = run(*wrong, f"folder={tmp_path / 'nothing'}", fails=True)
        assert answer in printed, printed
        assert "Traceback" not in printed
        assert not (tmp_path / "nothing").exists()


def test_the_help_names_every_tier_and_setting() -> None:
    printed = run("--help")
    for name in (
        "quickstart",
        "pick-place",
        "smoke",
        "standard",
        "ladder",
        "cortex",
        "folder",
        "arms",
        "without",
        "datasets",
        "worker",
    ):
        assert f"\n  {name} " in printed
    assert "(again with demonstrations=100, in another folder)" in " ".join(printed.split()), "a heading of two lines"
