"""The benchmark's planning, sharing out, resuming and reporting, without a simulator or a training."""

import json
import logging
import os
import re
import shlex
import sys
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark import command, reporting, results, running, usage
from benchmark.cells import (
    PATCHES,
    PRETRAINING,
    Cell,
    Worked,
    cell_folder,
    count_done,
    finish,
    is_done,
    plan_cells,
    work,
)
from benchmark.claims import claim, read_benchmark
from benchmark.remembering import EARLIER, RememberingEnv
from benchmark.settings import Benchmark, Training
from filelock import FileLock
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from lerobot_env_pixio import EpisodeRecord, make_env, provenance, read_records, write_records
from pixio_robot.errors import DataError, PixioRobotError, SettingError, UnknownNameError

SCENES = range(1_000_000, 1_000_020)


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., Benchmark]:
    def make(**changes: Any) -> Benchmark:
        settings: dict[str, Any] = {
            "tier": "test",
            "folder": str(tmp_path / "benchmark"),
            "tasks": ["metaworld/reach", "aloha/insertion"],
            "policies": ["act"],
            "arms": {"pixio": "shipped:pixio_vitt16"},
            "seeds": [0, 1],
            "demonstrations": 2,
            "training": {"act": Training(steps=3, batch_size=4)},
            "episodes": len(SCENES),
            "shifts": ["strong"],
            "size": 32,
            "slots": 4,
            "videos": 0,
            "save_every": 2,
        }
        return Benchmark(**(settings | changes))

    return make


def fill(config: Benchmark, *, rates: dict[str, float]) -> list[Cell]:
    """Fill all cells in as ``measuring`` would: every arm solves the easiest scenes, and half of them when shifted."""
    cells = plan_cells(config)
    for cell in cells:
        home = cell_folder(config.folder, cell)
        solved = round(rates[cell.arm] * len(SCENES))
        for condition, count in (("clean", solved), ("strong", solved // 2)):
            played = [record(cell, scene, scene < SCENES[0] + count) for scene in SCENES]
            write_records(home / f"records_{condition}.jsonl", played)
        finish(home, facts(cell))
    return cells


def record(cell: Cell, scene: int, success: bool | None, **changes: Any) -> EpisodeRecord:
    settings: dict[str, Any] = {"suite": cell.task.suite, "task": cell.task.name, "arm": cell.arm, "encoder": None}
    settings |= {"env_seed": scene, "policy_seed": cell.seed, "success": success, "total_reward": 1.0, "steps": 9}
    settings |= {"settings": {}, "versions": {"mujoco": "3.8.1"}} | changes
    return EpisodeRecord(**settings)


def facts(cell: Cell) -> dict[str, Any]:
    spent = {"shared": 1.0, "training": 2.0, "rollouts, clean": 3.0}
    known: dict[str, Any] = {"cell": cell.name, "losses": [[1, 2.0], [2, 1.0]], "cpu_seconds": spent}
    known |= {"weights": {"name": cell.arm}, "encoder": "f00", "trained_parameters": 1234}
    known |= {"demonstrations": {"frames": 900, "episodes": 25, "sha256": "de0"}}
    return known | {"taken_up": False, "machine": "abacus"}


RATES = {"pixio": 0.8, "blind": 0.0, "state": 1.0, "random": 0.3, "cnn": 0.6}


def test_every_combination_is_a_cell_and_all_arms_come_before_the_next_seed(make_config: Any) -> None:
    config = make_config(without=["cnn"])
    cells = plan_cells(config)
    assert len({cell.name for cell in cells}) == len(cells) == 2 * 1 * 4 * 2
    assert [cell.seed for cell in cells] == [0] * 8 + [1] * 8
    assert [cell.arm for cell in cells[:4]] == ["pixio", "blind", "state", "random"]
    assert cells[0].name == "metaworld-reach-v3/act/pixio-0"


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ({"tasks": ["metaworld/raech"]}, "reach-v3"),
        ({"tasks": ["metawrld/reach"]}, "metaworld"),
        ({"policies": ["atc"]}, "act"),
        ({"without": ["blnd"]}, "blind"),
        ({"shifts": ["strogn"]}, "strong"),
        ({"encoder_dtype": "bfloat"}, "bfloat16"),
        ({"scenes": "develop"}, "development"),
        ({"options": {"pixo": {}}}, "pixio"),
        ({"options": {"pixio": {"patch": "none"}}}, "patches"),
    ],
)
def test_a_typo_is_answered_with_the_nearest_name(make_config: Any, wrong: dict[str, Any], nearest: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        make_config(**wrong).check()
    assert caught.value.nearest == nearest


def test_an_encoder_that_cannot_be_read_is_refused_before_anything_runs(make_config: Any) -> None:
    config = make_config(arms={"pixio": "shipped:pixio_vitt16", "mine": "nowhere/model.pth"})
    with pytest.raises(SettingError, match=r"arms\.mine=nowhere/model\.pth: There is no checkpoint at"):
        running.run(config, command="")
    assert not Path(config.folder).exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"tasks": ["reach"]},
        {"tasks": ["metaworld/reach", "metaworld/reach-v3"]},
        {"seeds": []},
        {"arms": {}},
        {"arms": {"cnn": "shipped:pixio_vitt16"}},
        {"episodes": 0},
        {"variants": -1},
        {"training": {}},
        {"training": {"act": Training(steps=0, batch_size=1)}},
        {"datasets": {"adroit/pen": "somewhere"}},
        {
            "policies": ["mlp"],
            "training": {"mlp": Training(steps=1, batch_size=1)},
            "options": {"pixio": {"patches": "attention"}},
        },
        {
            "policies": ["mlp"],
            "training": {"mlp": Training(steps=1, batch_size=1)},
            "options": {"pixio": {"standardize": True}},
        },
    ],
)
def test_settings_that_cannot_be_are_refused(make_config: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        make_config(**wrong).check()


def test_a_folder_takes_more_of_the_same_and_refuses_what_differs_by_name(make_config: Any, tmp_path: Path) -> None:
    make_config().check()
    claim(make_config())
    written = json.loads((tmp_path / "benchmark" / "settings.json").read_text())
    claim(make_config(workers=2, tasks=["metaworld/reach-v3", "aloha/insertion"]))  # the same
    assert json.loads((tmp_path / "benchmark" / "settings.json").read_text()) == written
    with pytest.raises(DataError, match="demonstrations: 2 there, 3 wanted; episodes: 20 there, 7 wanted"):
        claim(make_config(demonstrations=3, episodes=7))
    with pytest.raises(DataError, match=r"variants: .* there, 2 wanted"):
        claim(make_config(variants=2))
    changed = make_config(variants=2, folder=str(tmp_path / "changed"))
    claim(changed)
    assert read_benchmark(tmp_path / "changed").variants == 2
    path = tmp_path / "changed" / "settings.json"
    path.write_text(path.read_text().replace("ColorJitter", "SharpnessJitter"))  # as if the default had been another
    with pytest.raises(DataError, match=r"augmentation: .*SharpnessJitter.* there, .*ColorJitter.* wanted"):
        claim(changed)
    with pytest.raises(DataError, match="arms: "):
        claim(make_config(arms={"pixio": "another"}))
    with pytest.raises(DataError, match=r"seeds: \[0, 1\] there, \[0\] wanted"):
        claim(make_config(seeds=[0]))
    with pytest.raises(DataError, match="training: "):
        claim(make_config(training={"act": Training(steps=4, batch_size=4)}))
    with pytest.raises(DataError, match="the first arm is 'mae'"):
        claim(make_config(arms={"mae": "there", "pixio": "shipped:pixio_vitt16"}))
    with pytest.raises(DataError, match="options: "):
        claim(make_config(options={"pixio": {"grid": 2}}))  # its cells were filled in without
    with pytest.raises(DataError, match="cameras: "):
        claim(make_config(cameras={"aloha/insertion": ["top"]}))
    grown = {"arms": {"pixio": "shipped:pixio_vitt16", "mae": "there"}, "options": {"mae": {"grid": 2}}}
    claim(make_config(**grown, seeds=[0, 1, 2]))
    with pytest.raises(DataError, match="arms: "):
        claim(make_config())


def test_a_folder_of_an_earlier_version_is_refused_by_what_it_lacks(make_config: Any, tmp_path: Path) -> None:
    claim(make_config())
    path = tmp_path / "benchmark" / "settings.json"
    old = json.loads(path.read_text())
    del old["options"]
    path.write_text(json.dumps(old))
    with pytest.raises(DataError, match="options"):
        claim(make_config())


def test_what_is_done_is_not_done_again_and_a_cell_that_breaks_stops_no_other(make_config: Any, tmp_path: Path) -> None:
    cells = plan_cells(make_config(tasks=["metaworld/reach"], seeds=[0]))
    filled: list[str] = []

    def fill_one(cell: Cell, home: Path) -> None:
        filled.append(cell.arm)
        if cell.arm == "state" and filled.count("state") == 1:
            raise DataError("no state")
        finish(home, {})

    logging.disable(logging.ERROR)
    first = work(tmp_path, cells, fill_one)
    logging.disable(logging.NOTSET)
    assert [cell.arm for cell in first.failed] == ["state"]
    assert first.failed[cells[2]] == "DataError: no state"
    assert filled == ["pixio", "blind", "state", "random", "cnn"]
    assert count_done(tmp_path, cells) == 4
    second = work(tmp_path, cells, fill_one)
    assert filled[5:] == ["state"]
    assert not second.failed
    assert count_done(tmp_path, cells) == 5


def test_cells_that_break_are_named_by_an_error_that_a_job_can_send_home(make_config: Any, monkeypatch: Any) -> None:
    config = make_config(tasks=["metaworld/reach"], seeds=[0])
    broken = Worked(failed={plan_cells(config)[2]: "DataError: no state\nof any kind"}, elsewhere=[])
    monkeypatch.setattr(running, "check_rendering", lambda: None)
    for check in ("recipes.check_arms", "tasks.check_tasks"):
        monkeypatch.setattr(f"benchmark.{check}", lambda _: None)
    monkeypatch.setattr(running, "work", lambda *_: broken)
    with pytest.raises(PixioRobotError) as caught:
        running.run(config, command="")
    assert str(caught.value) == "1 of 5 cells broke: metaworld-reach-v3/act/state-0, DataError: no state"


def test_a_job_of_a_cluster_tells_the_command_that_was_typed(monkeypatch: Any) -> None:
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    words = ["tier=smoke", "tasks=[metaworld/reach]", "worker=3", "hydra.job.name=mine"]
    with initialize_config_dir(str(command.SCRIPTS / "benchmark" / "conf"), version_base="1.3"):
        HydraConfig.instance().set_config(compose("config", words, return_hydra_config=True))
    monkeypatch.setattr(sys, "argv", ["_submit.py", "/outputs/slurm/123"])
    assert usage.command() == "scripts/run_benchmark.py tier=smoke 'tasks=[metaworld/reach]' worker=3"


def test_the_examples_of_the_help_are_commands(monkeypatch: Any) -> None:
    about = (command.SCRIPTS / "run_benchmark.py").read_text()
    examples = re.findall(r"^ +scripts/run_benchmark\.py (tier=\S+(?: \S+)*)", about, re.MULTILINE)
    assert len(examples) == 5
    for example in examples:
        with initialize_config_dir(str(command.SCRIPTS / "benchmark" / "conf"), version_base="1.3"):
            compose("config", shlex.split(example))


def test_the_quickstart_uses_the_cores_that_there_are_and_reads_random_weights_alike(monkeypatch: Any) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    with initialize_config_dir(str(command.SCRIPTS / "benchmark" / "conf"), version_base="1.3"):
        found = compose("config", ["tier=quickstart", "workers=3"])
    found.tier = "quickstart"  # which only a run resolves
    config = OmegaConf.to_object(found)
    assert isinstance(config, Benchmark)
    config.check()
    assert (config.workers, config.threads) == (3, 5)
    assert config.arm_names == ["pixio", "blind", "random"]
    assert config.options_of("random") == config.options_of("pixio") != {}
    assert list(config.conditions) == ["clean"]


def test_a_killed_process_leaves_its_cell_to_the_next(make_config: Any, tmp_path: Path) -> None:
    cells = plan_cells(make_config(tasks=["metaworld/reach"], seeds=[0]))
    filled: list[str] = []

    def die_at_the_third(cell: Cell, home: Path) -> None:
        filled.append(cell.arm)
        if len(filled) == 3:
            (home / "records_clean.jsonl").touch()
            raise KeyboardInterrupt
        finish(home, {})

    with pytest.raises(KeyboardInterrupt):
        work(tmp_path, cells, die_at_the_third)
    assert not is_done(tmp_path, cells[2])
    work(tmp_path, cells, die_at_the_third)
    assert filled == ["pixio", "blind", "state", "state", "random", "cnn"]


def test_a_cell_in_other_hands_is_left_alone(make_config: Any, tmp_path: Path) -> None:
    cells = plan_cells(make_config(tasks=["metaworld/reach"], seeds=[0]))
    home = cell_folder(tmp_path, cells[1])
    home.mkdir(parents=True)
    with FileLock(home / ".lock"):
        worked = work(tmp_path, cells, lambda _, home: finish(home, {}))
    assert worked.elsewhere == [cells[1]]
    assert count_done(tmp_path, cells) == 4
    assert not work(tmp_path, cells, lambda _, home: finish(home, {})).elsewhere


def test_the_report_says_what_the_records_say(make_config: Any, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_config()
    cells = fill(config, rates=RATES)
    (cell_folder(config.folder, cells[0]) / PATCHES).write_bytes(b"colours")
    (cell_folder(config.folder, cells[0]) / PRETRAINING).write_bytes(b"masked")
    page = reporting.write_report(config, command="run it")
    assert page is not None
    assert "mean of 2" in capsys.readouterr().out
    html, text = page.read_text(), (page.parent / "results.md").read_text()
    for said in (html, text):
        assert "32/40" in said  # 0.8 of 20 scenes, two seeds
        assert "16/20, 16/20" in said
        assert "+50 (" in said  # pixio less random
        assert "run it" in said
        assert "mujoco 3.8.1" in said
    assert "pixio beats random weights, frozen by +50" in text
    assert "pixio beats a blind policy by +80" in text
    assert "a blind policy" not in text.partition("seeing helps here")[2].split("##")[0]
    assert "50 % (" in text  # kept under shift
    assert "mean of 2 tasks, act" in text
    assert "<svg" in html
    assert html.count(b64encode(b"colours").decode()) == html.count(b64encode(b"masked").decode()) == 1
    assert "Random weights beat a blind policy as well" not in text
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", html), "the page must need no other file"
    (panel, _) = results.make_panels(config, plan_cells(config))
    clean = panel.scores["clean"]
    assert clean["pixio"].rate.value == pytest.approx(0.8)
    assert clean["cnn"].against["pixio"].value == pytest.approx(-0.2)
    assert clean["pixio"].against.keys() == {"random"}
    assert len(clean["pixio"].p_values["random"]) == 2


@pytest.mark.parametrize(
    ("options", "said", "unsaid"),
    [
        ({}, ("random weights, frozen by +50", ": pre-training helps", ": the frozen encoder helps"), ()),
        ({"pixio": {"train_encoder": "full"}}, ("weights, frozen by +50",), ("training helps", "encoder helps")),
        ({"pixio": {"grid": 2}}, (": pre-training helps", ": the frozen encoder helps"), ()),  # random reads alike
        ({"random": {"grid": 2}}, (": the frozen encoder helps",), ("pre-training helps",)),
        (
            {name: {"train_encoder": "full"} for name in ("pixio", "random")},
            ("random weights by +50", ": pre-training helps"),
            ("the frozen encoder", "weights, frozen"),
        ),
    ],
)
def test_a_cause_is_named_only_where_arms_differ_in_nothing_else(
    options: dict[str, Any], said: tuple[str, ...], unsaid: tuple[str, ...], make_config: Any
) -> None:
    config = make_config(tasks=["metaworld/reach"], options=options)
    fill(config, rates=RATES | {"cnn": 0.1})
    page = reporting.write_report(config, command="")
    assert page is not None
    text = (page.parent / "results.md").read_text()
    assert "a small CNN trained end to end by +70" in text
    assert [words for words in said if words not in text] == []
    assert [words for words in unsaid if words in text] == []


def test_a_task_that_random_weights_pass_is_said_to_be_one(make_config: Any) -> None:
    config = make_config(tasks=["metaworld/reach"])
    fill(config, rates=RATES | {"random": 0.8})
    page = reporting.write_report(config, command="")
    assert page is not None
    assert "Random weights beat a blind policy as well" in page.read_text()


def test_the_report_alone_can_be_had_and_runs_nothing(
    make_config: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "version", lambda name: pytest.fail(f"{name} need not be installed"))
    config = make_config(report_only=True, arms={"pixio": "nowhere"})  # there is no such encoder to run
    running.run(config, command="")
    assert "0 of 20 cells are done. There is nothing to report yet." in capsys.readouterr().out
    fill(config, rates=RATES)
    running.run(config, command="")
    assert "20 of 20 cells are done." in capsys.readouterr().out
    assert (Path(config.folder) / "report.html").is_file()
    assert not (Path(config.folder) / "settings.json").exists()


def test_the_report_draws_every_encoder_against_the_first(make_config: Any) -> None:
    config = make_config(arms={"pixio": "shipped:pixio_vitt16", "mae": "there"})
    fill(config, rates=RATES | {"mae": 0.5})
    page = reporting.write_report(config, command="")
    assert page is not None
    html = page.read_text()
    for drawn in ("pixio less random", "mae less pixio", "cnn less pixio"):
        assert f"{drawn}, clean scenes" in html


def test_the_report_tells_how_far_failures_came_if_all_records_do(make_config: Any) -> None:
    config = make_config(tasks=["metaworld/pick-place-v3"], arms={"pixio": "shipped:pixio_vitt16"}, seeds=[0])
    fill(config, rates=RATES)
    page = reporting.write_report(config, command="")
    assert page is not None
    assert "How far episodes came" not in page.read_text()
    for cell in plan_cells(config):
        for path in cell_folder(config.folder, cell).glob("records_*.jsonl"):
            ways = cycle(["", "lifted", "moved", "lifted"])
            write_records(path, [replace(one, milestone=next(ways)) for one in read_records(path)])
    assert reporting.write_report(config, command="") == page
    text = (page.parent / "results.md").read_text()
    assert "**How far episodes came, clean scenes**" in text
    assert "| arm | success | failed, lifted | failed, moved | failed, not moved |" in text
    assert "| Blind: its own pose only | 0 | 10 | 5 | 5 |" in text
    assert page.read_text().count("How far episodes came. A failure") == 1


def test_a_report_of_less_is_written_and_one_of_other_settings_is_not(make_config: Any, tmp_path: Path) -> None:
    top = {"cameras": {"aloha/insertion": ["top"]}}
    whole = make_config(arms={"pixio": "shipped:pixio_vitt16", "mae": "there"}, **top)
    fill(whole, rates=RATES | {"mae": 0.5})
    claim(whole)
    settings = tmp_path / "benchmark" / "settings.json"
    written = settings.read_text()
    for less in (
        {"seeds": [0]},
        {"tasks": ["metaworld/reach"]},
        {"arms": {"pixio": "shipped:pixio_vitt16"}, "without": ["cnn"]},
        {"seeds": [0, 1, 2]},
    ):
        running.run(make_config(report_only=True, **top, **less), command="")
        assert (tmp_path / "benchmark" / "report.html").is_file()
        (tmp_path / "benchmark" / "report.html").unlink()
    for other, told in (
        ({"training": {"act": Training(steps=4, batch_size=4)}}, "training: "),
        ({"arms": {"pixio": "another"}}, "arms: "),
        ({"arms": {"mae": "there"}}, "the first arm is 'mae'"),
        ({"demonstrations": 3}, "demonstrations: 2 there, 3 wanted"),
        ({"options": {"pixio": {"grid": 2}}}, "options: "),
        ({"cameras": {"aloha/insertion": ["angle"]}}, "cameras: "),
    ):
        with pytest.raises(DataError, match=told):
            running.run(make_config(**{"report_only": True, **top, **other}), command="")
    assert not (tmp_path / "benchmark" / "report.html").exists()
    assert settings.read_text() == written


def test_a_report_without_a_control_needs_none_of_its_options(make_config: Any) -> None:
    whole = make_config(options={"cnn": {"grid": 2}})
    fill(whole, rates=RATES)
    claim(whole)
    running.run(make_config(report_only=True, without=["cnn"]), command="")
    assert (Path(whole.folder) / "report.html").is_file()


@pytest.mark.parametrize("reference", ["cnn", "random"])
def test_the_report_compares_with_the_arm_that_it_is_told(make_config: Any, reference: str) -> None:
    whole = make_config()
    fill(whole, rates=RATES)
    claim(whole)
    config = make_config(report_only=True, reference=reference)
    running.run(config, command="")
    told = (Path(whole.folder) / "results.md").read_text()
    less = round(100 * (RATES["pixio"] - RATES[reference]))
    (row,) = re.findall(
        rf"Success less {reference}'s, clean scenes, points.*?(\| mean of 2 tasks.*?)\n", told, re.DOTALL
    )
    assert row.startswith(f"| mean of 2 tasks, act | +{less} (")
    assert "pre-training helps" not in told  # it is not said of an arm whose random weights are another's
    with pytest.raises(UnknownNameError, match="Did you mean 'cnn'"):
        make_config(reference="cnnn").check()


def test_an_unfinished_benchmark_is_reported_as_such(make_config: Any) -> None:
    config = make_config()
    assert reporting.write_report(config, command="") is None
    cells = fill(config, rates=RATES)
    for cell in cells[1:]:
        (cell_folder(config.folder, cell) / "cell.json").unlink()
    page = reporting.write_report(config, command="")
    assert page is not None
    text = (page.parent / "results.md").read_text()
    assert "Unfinished: 1 of 20 cells are done." in text
    assert "16/20" in text
    assert "aloha" not in text.split("## metaworld")[1]


def test_an_arm_whose_weights_changed_in_between_is_told_of(make_config: Any) -> None:
    config = make_config(tasks=["metaworld/reach"])
    cells = fill(config, rates=RATES)
    finish(cell_folder(config.folder, cells[0]), facts(cells[0]) | {"encoder": "ba7"})
    page = reporting.write_report(config, command="")
    assert page is not None
    assert "has cells of 2 different weights" in page.read_text()


def test_weights_that_are_learnt_from_a_task_are_one_source_though_every_task_has_its_own(make_config: Any) -> None:
    arms = {
        "pixio": "shipped:pixio_vitt16",
        "keypoints": "keypoints:8@shipped:descriptors",
        "untrained": "keypoints:8@random",
    }
    config = make_config(arms=arms)
    cells = fill(config, rates=RATES | dict.fromkeys(arms, 0.5))

    def write(weights: Callable[[Cell], str]) -> str:
        for cell in cells:
            finish(cell_folder(config.folder, cell), facts(cell) | {"encoder": weights(cell)})
        page = reporting.write_report(config, command="")
        assert page is not None
        return page.read_text()

    own: dict[str, Callable[[Cell], str]] = {
        "keypoints": lambda cell: cell.task.name,
        "untrained": lambda cell: f"{cell.task.name} {cell.seed}",
    }
    assert "different weights" not in write(lambda cell: own.get(cell.arm, lambda _: "f00")(cell))
    assert "has cells of 2 different weights" in write(lambda cell: f"{cell.task.name} {cell.seed}")


def test_demonstrations_that_were_recorded_anew_in_between_are_told_of(make_config: Any) -> None:
    config = make_config(tasks=["metaworld/reach"])
    cells = fill(config, rates=RATES)
    told = "recordings of its demonstrations"
    page = reporting.write_report(config, command="")
    assert page is not None
    assert told not in page.read_text()
    others = facts(cells[0]) | {"demonstrations": {"frames": 900, "episodes": 25, "sha256": "de1"}}
    finish(cell_folder(config.folder, cells[0]), others)
    reporting.write_report(config, command="")
    assert f"Cells of metaworld/reach-v3 were trained on 2 {told}" in page.read_text()


def test_a_control_that_is_off_is_missed_aloud(make_config: Any, monkeypatch: Any, caplog: Any) -> None:
    config = make_config(without=["random"])
    fill(config, rates=RATES)
    page = reporting.write_report(config, command="")
    assert page is not None
    assert "nothing says what pre-training buys" in page.read_text()
    monkeypatch.setattr(running, "check_rendering", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        running.run(config, command="")
    assert "'random' is off" in caplog.text


def rewrite(path: Path, change: Callable[[EpisodeRecord], EpisodeRecord]) -> None:
    write_records(path, [change(one) for one in read_records(path)])


def test_a_broken_scene_is_left_out_of_every_arm(make_config: Any) -> None:
    config = make_config(tasks=["metaworld/reach"])
    cells = fill(config, rates=RATES)

    def break_first(one: EpisodeRecord) -> EpisodeRecord:
        if one.env_seed != SCENES[0]:
            return one
        return record(cells[3], one.env_seed, None, error="Traceback\nBrokenJoint: snap")

    rewrite(cell_folder(config.folder, cells[3]) / "records_strong.jsonl", break_first)
    (panel,) = results.make_panels(config, cells)
    assert panel.scenes == 19
    assert {score.successes.shape for scores in panel.scores.values() for score in scores.values()} == {(2, 19)}
    assert panel.scores["clean"]["pixio"].counts == "30/38"
    assert panel.notes == [
        "1 episode broke off in the simulator, which is nobody's failure; left out everywhere: 1 scene. "
        "The first said: BrokenJoint: snap"
    ]


def test_a_record_file_with_a_torn_last_line_costs_one_scene_everywhere(make_config: Any) -> None:
    config = make_config(tasks=["metaworld/reach"])
    cells = fill(config, rates=RATES)
    path = cell_folder(config.folder, cells[0]) / "records_clean.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    (panel,) = results.make_panels(config, cells)
    assert panel.scenes == 19
    assert panel.notes == ["Missing from some cell's records, and left out everywhere: 1 scene."]
    path.write_text("nonsense\n" + path.read_text())
    with pytest.raises(DataError, match="line 1 is no episode record"):
        results.make_panels(config, cells)


def test_an_environment_with_a_memory_shows_the_last_frames_and_forgets_at_the_reset() -> None:
    env: Any = RememberingEnv(make_env("metaworld", "reach", size=24, cameras=["corner2"]), steps=3)
    seen = [env.reset(seed=1)[0], *(env.step(np.ones(4, np.float32))[0] for _ in range(3))]
    present = [one["pixels"]["corner2"] for one in seen]
    for now, expected in ((0, (0, 0)), (1, (0, 0)), (2, (0, 1)), (3, (1, 2))):
        for place, past in enumerate(expected):
            np.testing.assert_array_equal(seen[now][f"{EARLIER}corner2"][place], present[past])
    again, _ = env.reset(seed=1)
    np.testing.assert_array_equal(again[f"{EARLIER}corner2"], np.stack([present[0]] * 2))
    assert env.settings["history"] == 3
    env.close()
