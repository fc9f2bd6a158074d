import errno
import json
import multiprocessing
import os
import pickle
import random
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from pixio_pretrain import RunConfig, train, training
from pixio_pretrain.checkpoint import checkpoints, load_checkpoint, read_facts, save_checkpoint
from pixio_pretrain.config import LoadingConfig, OptimizerConfig, ParallelConfig, ViewsConfig
from pixio_pretrain.distributed import World
from pixio_pretrain.objectives.base import EncoderConfig
from pixio_pretrain.objectives.distill import DistillConfig
from pixio_pretrain.optim import make_optimizer
from pixio_robot import create_encoder
from pixio_robot.errors import CheckpointError, SettingError

MakeConfig = Callable[..., RunConfig]
DRIVER = Path(__file__).parent / "driver.py"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
train_and_record = runpy.run_path(str(DRIVER))["train_and_record"]


def log_of(config: RunConfig) -> list[dict[str, float]]:
    """The log, less what the clock says."""
    rows = [json.loads(line) for line in Path(config.folder, "log.jsonl").read_text().splitlines()]
    clock = ("images_per_s", "utilisation", "elapsed_s")
    return [{key: row[key] for key in row if key not in clock} for row in rows]


def keys_of(folder: Path) -> dict[tuple[str, int], list[str]]:
    """Sample keys by rank and place; whatever a killed run was given again must be what it was given before."""
    found: dict[tuple[str, int], list[str]] = {}
    for file in folder.iterdir():
        for line in file.read_text().splitlines():
            place, keys = json.loads(line)
            assert found.setdefault((file.stem, place), keys) == keys
    return found


def state_of(config: RunConfig) -> dict[str, torch.Tensor]:
    """All tensors of the last checkpoint by name, whole."""
    last = checkpoints(Path(config.folder, "checkpoints"))[-1]
    file = Path(config.folder) / "whole.pt"
    dcp_to_torch_save(last, file)
    return {key: value for key, value in torch.load(file, weights_only=True).items() if torch.is_tensor(value)}


def start_process(config: RunConfig, folder: Path, *launcher: str) -> subprocess.Popen[bytes]:
    """Start a run in a process, or several, of its own."""
    file = folder / "config.pickle"
    file.write_bytes(pickle.dumps(config))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    words = [sys.executable, *launcher, str(DRIVER), str(file), str(folder / "keys")]
    with (folder / "stderr").open("ab") as stderr:
        return subprocess.Popen(words, env=environment, start_new_session=True, stderr=stderr)


def kill_at_line(process: subprocess.Popen[bytes], config: RunConfig, lines: int) -> None:
    """Kill all processes of a run once its log has so many lines."""
    wait_for_line(process, config, lines)
    ranks = re.findall(r"rank \d is (\d+)", (Path(process.args[-1]).parent / "stderr").read_text())
    for pid in map(int, (process.pid, *ranks)):
        os.kill(pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not Path(config.folder, "result.json").exists()


def wait_for_line(process: subprocess.Popen[bytes], config: RunConfig, lines: int) -> None:
    """Wait until the log has so many lines."""
    log = Path(config.folder, "log.jsonl")
    for _ in range(30_000):
        if log.exists() and len(log.read_text().splitlines()) >= lines:
            return
        assert process.poll() is None, "the run ended too early"
        time.sleep(0.005)
    pytest.fail("the log does not grow")


def assert_equal_ends(whole: RunConfig, resumed: RunConfig, folders: tuple[Path, Path]) -> None:
    """Losses, sample keys, weights and moments are the same to the last bit."""
    assert log_of(whole) == log_of(resumed)
    assert [row["step"] for row in log_of(whole)] == list(range(1, whole.steps + 1))
    assert keys_of(folders[0]) == keys_of(folders[1])
    ours, theirs = state_of(whole), state_of(resumed)
    assert ours.keys() == theirs.keys()
    assert len(ours) > 100
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    weights = [Path(config.folder, "encoder", "model.safetensors").read_bytes() for config in (whole, resumed)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("resident", [False, True])
def test_a_run_killed_at_any_moment_ends_bit_equal_to_an_unbroken_one(
    resident: bool, make_config: MakeConfig, tmp_path: Path
) -> None:
    loading = LoadingConfig(resident=resident)
    whole = make_config(steps=20, evaluate_every=10, checkpoint_every=7, loading=loading)
    killed = replace(whole, folder=str(tmp_path / "killed"))
    train_and_record(whole, tmp_path / "whole_keys")
    process = start_process(killed, tmp_path)
    kill_at_line(process, killed, random.randrange(3, 17))
    with Path(killed.folder, "log.jsonl").open("a") as log:
        log.write('{"step": 31, "lo')  # a line cut short
    torch.rand(5)  # the state of the caller's generator must not matter
    train_and_record(killed, tmp_path / "keys")
    assert_equal_ends(whole, killed, (tmp_path / "whole_keys", tmp_path / "keys"))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_killed_at_any_moment_end_bit_equal_to_two_unbroken_ones(
    strategy: str, make_config: MakeConfig, tmp_path: Path
) -> None:
    whole = make_config(steps=20, evaluate_every=10, checkpoint_every=7, parallel=ParallelConfig(strategy=strategy))
    killed = replace(whole, folder=str(tmp_path / "killed" / "run"))
    for folder in (tmp_path / "whole", tmp_path / "killed"):
        folder.mkdir()
    assert start_process(whole, tmp_path / "whole", *TORCHRUN).wait() == 0
    process = start_process(killed, tmp_path / "killed", *TORCHRUN)
    kill_at_line(process, killed, random.randrange(3, 17))
    assert start_process(killed, tmp_path / "killed", *TORCHRUN).wait() == 0
    assert_equal_ends(whole, killed, (tmp_path / "whole" / "keys", tmp_path / "killed" / "keys"))
    assert {rank for rank, _ in keys_of(tmp_path / "killed" / "keys")} == {"0", "1"}


@pytest.mark.slow
def test_a_sharded_run_goes_on_in_one_process_and_ends_alike(make_config: MakeConfig, tmp_path: Path) -> None:
    tiny = replace(make_config().objective, drop_path=0.0)
    whole = make_config(steps=12, precision="fp32", objective=tiny, parallel=ParallelConfig(strategy="fsdp"))
    moved = replace(whole, folder=str(tmp_path / "moved"))
    train(whole)
    process = start_process(moved, tmp_path, *TORCHRUN)
    kill_at_line(process, moved, 4)
    assert 0 < read_facts(checkpoints(Path(moved.folder, "checkpoints"))[-1])["step"] < 12
    train(moved)
    ours, theirs = state_of(whole), state_of(moved)
    assert max((ours[key].float() - theirs[key].float()).abs().max() for key in ours) < 1e-3
    assert [row["loss"] for row in log_of(moved)] == pytest.approx([row["loss"] for row in log_of(whole)], rel=1e-4)


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch, how: Callable[[], Any]) -> None:
    """Have something happen in the middle of a step."""

    def interrupted(run: Any, batches: Any, plain: Callable[..., Any] = training._train_step) -> Any:
        if run.step == step - 1:
            how()
        return plain(run, batches)

    monkeypatch.setattr(training, "_train_step", interrupted)


def test_sigterm_saves_at_the_end_of_the_step_and_exits_with_143(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_config(checkpoint_every=100)
    stopped = replace(whole, folder=str(tmp_path / "stopped"), loading=LoadingConfig(workers=1))
    train_and_record(whole, tmp_path / "whole_keys")
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        interrupt_at(4, patch, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit) as exit_:
            train_and_record(stopped, tmp_path / "keys")
    assert exit_.value.code == 143
    assert not multiprocessing.active_children()  # though the exception, and what it came through, is kept
    assert signal.getsignal(signal.SIGTERM) == before
    assert [place.name for place in checkpoints(Path(stopped.folder, "checkpoints"))] == ["step-00000004"]
    train_and_record(stopped, tmp_path / "keys")
    assert_equal_ends(whole, stopped, (tmp_path / "whole_keys", tmp_path / "keys"))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_sigterm_to_torchrun_saves_once(workers: int, make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(steps=2000, checkpoint_every=10_000, evaluate_every=10_000)
    config.loading.workers = workers
    process = start_process(config, tmp_path, *TORCHRUN)
    wait_for_line(process, config, 5)
    process.terminate()  # torchrun passes it on to the process groups of the ranks
    assert process.wait() != 0
    assert "the same command goes on" in (tmp_path / "stderr").read_text()
    (place,) = checkpoints(Path(config.folder, "checkpoints"))
    assert read_facts(place)["step"] >= 5


def test_the_two_newest_checkpoints_are_kept(make_config: MakeConfig) -> None:
    config = make_config()
    train(config)
    places = sorted(Path(config.folder, "checkpoints").iterdir())
    assert [place.name for place in places] == ["step-00000004", "step-00000006"]


def test_a_full_disk_leaves_the_last_checkpoint_and_says_how_much_is_needed(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        interrupt_at(4, patch, lambda: patch.setattr(FileSystem, "create_stream", full))
        said = r"it takes [\d.]+ GB, and [\d.]+ GB are free\. .*step-00000002 is whole"
        with pytest.raises(CheckpointError, match=said):
            train(config)
    (place,) = Path(config.folder, "checkpoints").iterdir()
    assert read_facts(place)["step"] == 2
    train(config)
    assert [row["step"] for row in log_of(config)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"batch_size": 4}, r"batch_size \(there 8, now 4\)"),
        ({"views": ViewsConfig(crop_scale=0.9)}, r"views.crop_scale \(there 0.5, now 0.9\), views.held_out \("),
        ({"optimizer": OptimizerConfig(base_lr=1.0, warmup=1)}, r"optimizer.base_lr \(there 0.1, now 1.0\)"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_of_a_run_with_other_settings_is_refused_by_their_names(
    change: dict[str, Any], named: str, finished: bool, make_config: MakeConfig
) -> None:
    config = make_config(steps=2)
    train(config)
    if not finished:
        Path(config.folder, "result.json").unlink()
    with pytest.raises(CheckpointError, match=named):
        train(make_config(steps=2, **change))


def test_where_and_how_a_run_computes_may_change(make_config: MakeConfig) -> None:
    before = make_config()
    after = make_config(
        data="elsewhere", folder="elsewhere", threads=3, evaluate_every=1, checkpoint_every=1, max_bad_steps=2
    )
    after.parallel = ParallelConfig(strategy="fsdp", accumulate=4, checkpoint_activations=True, compile=True)
    after.loading.workers, after.log.trackers = 3, ["tensorboard"]
    assert before.identity() == after.identity()


def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_serves(make_config: MakeConfig) -> None:
    config = make_config()
    train(config)
    Path(config.folder, "result.json").unlink()
    before, last = checkpoints(Path(config.folder, "checkpoints"))
    (last / ".metadata").write_bytes(b"cut short")
    with pytest.raises(CheckpointError, match="step-00000006 is damaged or foreign"):
        train(config)
    last.rename(last.with_name(f"{last.name}.bad"))
    assert checkpoints(last.parent) == [before]
    (before / "__0_0.distcp").write_bytes(b"")
    with pytest.raises(CheckpointError, match="step-00000004 is damaged or foreign"):
        train(config)


def test_a_part_that_had_no_gradient_yet_goes_on_as_if_never_stopped(tmp_path: Path) -> None:
    def build() -> tuple[nn.ModuleDict, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.ModuleDict({"early": nn.Linear(3, 2), "late": nn.Linear(3, 2)})
        return model, make_optimizer(model, OptimizerConfig())

    def step(model: nn.ModuleDict, optimizer: torch.optim.Optimizer, *parts: str) -> None:
        for group in optimizer.param_groups:
            group["lr"] = 0.1
        torch.stack([model[part](torch.ones(3)).square().sum() for part in parts]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    (whole, moments), (resumed, fresh), world = build(), build(), World(device=torch.device("cpu"))
    step(whole, moments, "early")
    save_checkpoint(tmp_path, whole, moments, step=1, facts={}, own={}, world=world)
    load_checkpoint(tmp_path / "step-00000001", resumed, fresh, rank=0)
    for model, optimizer in ((whole, moments), (resumed, fresh)):
        step(model, optimizer, "early", "late")
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_finished_run_is_left_as_it_is(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(steps=2)
    folder = train(config)
    monkeypatch.setattr(training, "start", lambda *_: pytest.fail("built again"))
    assert train(config) == folder


def test_a_second_run_in_the_same_folder_is_refused_while_the_first_is_at_work(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pixio_robot.runs.GRACE", 0.1)
    config = make_config(steps=2)
    Path(config.folder).mkdir(parents=True)
    with (
        FileLock(Path(config.folder, ".lock")),
        pytest.raises(SettingError, match=r"Another process trains in .*another folder"),
    ):
        train(config)
    train(config)


@pytest.mark.parametrize("finished", [True, False])
def test_a_teacher_of_the_same_name_with_other_weights_is_refused_where_it_still_teaches(
    finished: bool, make_config: MakeConfig, tmp_path: Path
) -> None:
    sizes: dict[str, Any] = {"depth": 1, "heads": 2, "patch_size": 8, "image_size": 32}
    students = {"small": EncoderConfig(**sizes, width=8)}
    config = make_config(
        steps=2, objective=DistillConfig(teacher=str(tmp_path / "teacher"), mask_ratio=0.0, students=students)
    )
    create_encoder("pixio_vitt16", seed=0, width=16, **sizes).save_pretrained(tmp_path / "teacher")
    folder = train(config)
    shutil.rmtree(tmp_path / "teacher")
    create_encoder("pixio_vitt16", seed=1, width=16, **sizes).save_pretrained(tmp_path / "teacher")
    if finished:
        assert train(config) == folder
        return
    Path(config.folder, "result.json").unlink()
    with pytest.raises(CheckpointError, match=r"teacher_sha256 \(there "):
        train(config)
