import os
import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from pixio_pretrain import RunConfig, cli
from pixio_pretrain.manual import run_names, train_help
from pixio_pretrain.objectives import OBJECTIVES
from pixio_pretrain.optim import OptimizerConfig
from pixio_pretrain.plan import PlanConfig

TINY = "width=32 depth=2 heads=2 class_tokens=2 image_size=32 patch_size=8 decoder_width=32 decoder_depth=2"
SIZES = [f"objective.{word}" for word in TINY.split()] + ["objective.decoder_heads=2"]


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # set by the command; this takes it back
    monkeypatch.setattr(sys, "argv", ["pixio-pretrain", *words])
    cli.main()


def test_the_settings_of_the_command_line_are_these() -> None:
    # A new setting is a decision: add it here, and ask whether another can go.
    assert {field.name for field in fields(RunConfig)} == {
        *("data", "folder", "licence", "steps", "batch_size", "seed", "precision", "device", "threads"),
        *("max_bad_steps", "evaluate_every", "checkpoint_every"),
        *("objective", "optimizer", "views", "curation", "loading", "parallel", "log"),
    }
    assert {field.name for field in fields(OptimizerConfig)} == {
        *("name", "base_lr", "min_lr", "warmup", "warmup_from", "weight_decay", "betas"),
    }
    assert {field.name for field in fields(PlanConfig)} - {field.name for field in fields(RunConfig)} == {
        *("gpus", "gpu", "utilisation"),
    }


def test_the_command_trains_where_it_is_told_and_litters_nowhere(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = [
        "steps=2",
        "optimizer.warmup=1",
        "batch_size=4",
        "views.held_out_views=8",
        "folder=here",
        "log.trackers=[]",
    ]
    call(monkeypatch, "train", "run=vitt16_metaworld", f"data={store}", *SIZES, *wanted)
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
    assert Path.cwd() == tmp_path
    card = (tmp_path / "here/encoder/README.md").read_text()
    assert "`pixio-pretrain run=vitt16_metaworld objective.width=32" in card
    assert str(tmp_path) not in card
    assert str(store) not in card + (tmp_path / "here/encoder/config.json").read_text()


def test_plan_prints_what_a_run_would_cost(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    call(monkeypatch, "plan", "run=vitt16_metaworld", *SIZES, "gpus=2", "gpu=a100", "utilisation=0.3")
    said = capsys.readouterr().out
    assert said.startswith("pixio in bf16: 10000 steps of 64 samples on 2 x A100")
    assert "encoder (vit)" in said
    assert "FSDP2" in said
    assert "at 30% of 2 x 312 TFLOP/s" in said


@pytest.mark.parametrize(
    ("words", "answer", "code"),
    [
        (["run=vitt16_metaworl"], "No run is called 'vitt16_metaworl'. Did you mean 'vitt16_metaworld'?", 2),
        (["run=vitt16_metaworld", "objective=mea"], "No objective is called 'mea'. Did you mean 'mae'?", 2),
        (["run=vitt16_metaworld", "stepps=2"], "No setting is called 'stepps'. Did you mean 'steps'?", 2),
        (
            ["run=vitt16_metaworld", "objective.mask_blok=2"],
            "No setting of objective is called 'mask_blok'. Did you mean 'mask_block'?",
            2,
        ),
        (["run=vitt16_metaworld", "+stepps=2"], "No setting is called 'stepps'. Did you mean 'steps'?", 2),
        (
            ["run=vitt16_metaworld", "+views.crop=1"],
            "No setting of views is called 'crop'. Did you mean 'crop_scale'?",
            2,
        ),
        (
            ["run=vitt16_metaworld", "steps=many"],
            "steps: Value 'many' of type 'str' could not be converted to Integer",
            2,
        ),
        (["run=vitt16_metaworld", "steps=[1,2"], "no viable alternative at input '[1,2'", 2),
        (
            ["run=vitt16_metaworld", "objective=distill"],
            "run=vitt16_metaworld sets objective.encoder, which DistillConfig does not have: take a run of that",
            2,
        ),
        (
            ["run=distill_vitt16_metaworld", "objective.students.mine={width: 96}"],
            "There is no objective.students.mine yet: write +objective.students.mine=... to add it.",
            2,
        ),
        (["run=vitt16_metaworld", "log.trackers=wandb"], "log.trackers: a list is wanted, as in 'log.trackers=[", 2),
        (["run=vitt16_metaworld", "data=/nowhere", "folder=/proc/x"], "/proc/x cannot be written to: ", 1),
        (["run=vitt16_metaworld", "data=/nowhere"], "There is nothing at /nowhere", 1),
        (["run=vitt16_metaworld", "data=/no/a-{0..9}.tar"], "There are no tar shards at /no/a-0.tar", 1),
        (["run=vitt16_metaworld", "data=/nowhere", "steps=0"], "steps must be at least 1", 1),
        (["run=vitt16_metaworld", "data=x", "steps=200"], "optimizer.warmup=300 is not below steps=200", 1),
        (["run=vitt16_metaworld", "objective.name=mea", "data=x"], "No objective is called 'mea'", 2),
        (["run=vitt16_metaworld"], "data is missing: add data=...", 2),
        (["data=x"], "You must specify 'run'", 2),
        (["plan", "run=vitt16_metaworld", "gpu=h20"], "No gpu is called 'h20'. Did you mean 'h200'?", 2),
        (["plan", "run=vitt16_metaworld", "gpuss=8"], "No setting is called 'gpuss'. Did you mean 'gpus'?", 2),
        (["plann"], "No command is called 'plann'. Did you mean 'plan'?", 2),
    ],
)
def test_a_wrong_word_is_answered_without_a_traceback(
    words: list[str],
    answer: str,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        call(monkeypatch, *words)
    said = capsys.readouterr().err
    assert exit_.value.code == code
    assert said.startswith(f"pixio-pretrain: {answer}")
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("word", "given"),
    [
        ("data=~/x", "~/x"),
        ("data=train-[ab].tar", "train-[ab].tar"),
        ("data=a-{0..9}.tar", "a-{0..9}.tar"),
        ("data={a,b}.tar", "{a,b}.tar"),
        ("data=s3://bucket/a?b=c&d#e", "s3://bucket/a?b=c&d#e"),
        ("++encoder=Modèles/pixio", "Modèles/pixio"),
        ("folder=2024_10", "2024_10"),
        ("curation.table=true", "true"),
        ("curation.table=null", None),
        ("objective.teacher=facebook/pixio-vitb16", "facebook/pixio-vitb16"),
        ('folder=say "so"', 'say "so"'),
        ("data='a b'", "a b"),
        ('data="{a,b}"', "{a,b}"),
        ("folder=out/${seed}", "out/${seed}"),
        ("data=a,b", ["a", "b"]),
        ("steps=2024_10", 202410),
    ],
)
def test_a_place_means_what_it_says(word: str, given: object) -> None:
    (override,) = OverridesParser.create().parse_overrides([cli.quote_place(word)])
    found = list(override.sweep_iterator()) if override.is_sweep_override() else override.value()
    assert found == given


def test_a_missing_launcher_is_answered_with_the_command_that_installs_it() -> None:
    from hydra.errors import MissingConfigException

    missing = MissingConfigException("...", "hydra/launcher/submitit_slurm", ["basic"])
    assert cli.explain(missing).endswith("pip install 'pixio-pretrain[slurm]'.")


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_lists_the_commands_a_line_each(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(monkeypatch, *words)
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines()[2:]] == ["train", "plan", "export", "score"]


def test_the_help_of_train_names_every_run_and_every_setting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(monkeypatch, "train", "--help")
    said = capsys.readouterr().out
    named = set(re.findall(r"^  ([\w.]+)", said, re.MULTILINE))
    assert set(run_names()) <= named
    assert {"steps", "batch_size", "optimizer.base_lr", "views.crop_scale", "parallel.strategy"} <= named
    settings = {field.name for config in OBJECTIVES.values() for field in fields(config)}
    assert {f"objective.{name}" for name in settings} <= named
    assert all(len(line) <= 120 for line in said.splitlines())


def test_the_help_of_plan_says_how_memory_is_reckoned(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(monkeypatch, "plan", "--help")
    said = capsys.readouterr().out
    assert "weights 4 P, gradients 4 T, moments 4 m T" in said
    assert "utilisation=0.4" in said


def test_a_setting_that_is_named_is_explained() -> None:
    assert re.search(r"steps +Optimiser steps\.", train_help())


def test_the_tasks_of_a_slurm_job_find_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    task = {"JOB_ID": "7", "NTASKS": "2", "GLOBALID": "1", "LOCALID": "1", "NODEID": "0", "NNODES": "1"}
    names = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    for name, value in task.items():
        monkeypatch.setenv(f"SUBMITIT_LOCAL_{name}", value)
    for name in names:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    cli._join_slurm()
    assert (os.environ["WORLD_SIZE"], os.environ["RANK"], os.environ["LOCAL_RANK"]) == ("2", "1", "1")
    assert os.environ["MASTER_PORT"].isdigit()
