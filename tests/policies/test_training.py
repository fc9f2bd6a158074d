"""Training from the cache: the same numbers as LeRobot's own path, and the same after a kill."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from lerobot.envs.configs import PushtEnv
from lerobot.optim import load_optimizer_state
from lerobot.policies.factory import make_pre_post_processors

from lerobot_policy_pixio import PixioACTConfig, PixioDiffusionConfig
from lerobot_policy_pixio.dataset_tables import policy_inputs
from lerobot_policy_pixio.demonstrations import Demonstrations
from lerobot_policy_pixio.evaluation import Evaluation
from lerobot_policy_pixio.frames import DatasetFrames
from lerobot_policy_pixio.modeling_pixio_act import PixioACTPolicy
from lerobot_policy_pixio.training import Trainer, make_policy, make_processors, sample_rows, train
from pixio_robot import Encoder, build_cache, create_encoder, load_encoder, runs
from pixio_robot.errors import CacheError, CheckpointError, DataError, SettingError

MakeConfig = Callable[..., PixioACTConfig]


def weights(policy: PixioACTPolicy) -> list[torch.Tensor]:
    return list(policy.state_dict().values())


def see_images(demonstrations: Demonstrations, frames: DatasetFrames, sources: dict[str, str]) -> None:
    """Gather decoded images in place of cached tokens: for each camera those of its source."""
    gather, images = demonstrations.gather, {camera: frames.read(camera, 0, len(frames)) for camera in sources}
    demonstrations.gather = lambda rows: (
        gather(rows) | {camera: images[source][rows] for camera, source in sources.items()}
    )


def worst(losses: list[float], reference: list[float]) -> float:
    """Largest relative difference."""
    return max(abs(a / b - 1) for a, b in zip(losses, reference, strict=True))


def equal(left: PixioACTPolicy, right: PixioACTPolicy) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(left), weights(right), strict=True))


@pytest.fixture
def trained(
    make_config: MakeConfig, dataset_root: Path, cache: Path, encoder: Encoder, tmp_path: Path
) -> Callable[..., Any]:
    def run(name: str = "run", **changes: Any) -> tuple[PixioACTPolicy, list[dict[str, float]]]:
        settings = {"steps": 6, "batch_size": 8, "log_every": 1, "save_every": 2, "encoder": encoder}
        config = changes.pop("config", None) or make_config(scheduler_warmup_steps=2)
        root, features = changes.pop("dataset_root", dataset_root), changes.pop("cache", cache)
        return train(config, root, features, tmp_path / name, **(settings | changes))

    return run


def test_training_from_the_cache_follows_training_from_images(
    make_config: MakeConfig, make_dataset: Callable[..., Path], encoder: Encoder, tmp_path: Path
) -> None:
    """Twenty steps with dropout on, from images and from float16 tokens; the wrong camera's images show the scale.

    Frames are stored as PNG here, since video encoders do not give the same bits every time.
    """
    frames = DatasetFrames(make_dataset(tmp_path / "data", dtype="image"))
    cache = build_cache(tmp_path / "cache.zarr", encoder, frames, grid=2).path
    top, wrist = frames.cameras

    def losses(images_of: dict[str, str] | None) -> list[float]:
        config = make_config(use_vae=False, optimizer_lr=5e-4, scheduler_warmup_steps=75)
        policy = make_policy(config, frames, seed=0, encoder=encoder)
        demonstrations = Demonstrations(frames, policy, make_processors(policy, frames)[0], cache)
        if images_of is not None:
            see_images(demonstrations, frames, images_of)
        trainer = Trainer(policy, demonstrations, steps=1500, batch_size=32)
        return [trainer.step(step)["loss"] for step in range(1, 21)]

    live, cached, wrong = losses({top: top, wrist: wrist}), losses(None), losses({top: wrist, wrist: top})
    assert live != cached
    assert worst(cached, live) < 1e-3 < worst(wrong, live)


def test_a_killed_run_continues_bit_for_bit(
    trained: Callable[..., Any],
    make_config: MakeConfig,
    make_diffusion_config: Callable[..., PixioDiffusionConfig],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    make = make_config if kind == "pixio_act" else make_diffusion_config
    settings = {"config": make(scheduler_warmup_steps=2)}
    whole, log = trained("whole", **settings)
    step = Trainer.step

    def step_until_killed(self: Trainer, number: int) -> Any:
        if number == 6:
            raise KeyboardInterrupt
        return step(self, number)

    monkeypatch.setattr(Trainer, "step", step_until_killed)
    with pytest.raises(KeyboardInterrupt):
        trained("killed", **settings)
    monkeypatch.undo()
    continued, its_log = trained("killed", **settings)
    assert equal(continued, whole)
    assert [(row["step"], row["loss"], row["lr"]) for row in its_log] == [
        (row["step"], row["loss"], row["lr"]) for row in log
    ]
    assert [row["step"] for row in log] == [1, 2, 3, 4, 5, 6]
    finished, _ = trained("killed", **settings)  # once more: nothing is left to do
    assert equal(finished, whole)


def test_a_terminated_run_saves_itself_and_continues_bit_for_bit(
    trained: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = trained("whole")
    step = Trainer.step

    def step_and_be_terminated(self: Trainer, number: int) -> Any:
        if number == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, number)

    monkeypatch.setattr(Trainer, "step", step_and_be_terminated)
    with pytest.raises(SystemExit) as exit_of:
        trained("terminated")
    monkeypatch.undo()
    assert exit_of.value.code == 143
    assert (tmp_path / "terminated" / "checkpoints" / "last").resolve().name == "000003"
    continued, _ = trained("terminated")
    assert equal(continued, whole)


@pytest.fixture
def measured(trained: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Train with an evaluation every four steps, which a number of the policy's weights stands for."""

    def run(name: str, before: Callable[[], None] = lambda: None) -> tuple[PixioACTPolicy, list[Any]]:
        def result(_: Evaluation, policy: PixioACTPolicy, __: Any) -> dict[str, float]:
            before()
            return {"eval_success": weights(policy)[0].sum().item()}

        monkeypatch.setattr(Evaluation, "run", result)
        policy, log = trained(name, save_every=4, evaluation=Evaluation(env=PushtEnv(), every=4))
        return policy, [(row["step"], row["loss"], row.get("eval_success")) for row in log]

    return run


@pytest.mark.parametrize("last", [4, 6])
def test_an_evaluation_that_fails_loses_no_step_and_is_made_up_for(
    measured: Callable[..., Any], tmp_path: Path, last: int
) -> None:
    whole, log = measured("whole")
    assert [step for step, _, success in log if success is not None] == [4, 6]
    file = tmp_path / "failed" / "log.jsonl"

    def fail() -> None:
        if len(file.read_text().splitlines()) == last:
            raise RuntimeError("no display")

    with pytest.raises(RuntimeError, match="no display"):
        measured("failed", fail)
    assert (tmp_path / "failed" / "checkpoints" / "last").resolve().name == f"{last:06d}"
    continued, its_log = measured("failed")
    assert equal(continued, whole)
    assert its_log == log
    assert len(file.read_text().splitlines()) == 6
    _, its_log = measured("failed", fail)  # once more: nothing is left to measure
    assert its_log == log


@pytest.mark.parametrize(("late", "saved"), [(False, 4), (True, 5)], ids=["before", "within"])
def test_a_run_that_is_terminated_around_an_evaluation_continues_bit_for_bit(
    measured: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool, saved: int
) -> None:
    whole, log = measured("whole")
    last, step = tmp_path / "terminated" / "checkpoints" / "last", Trainer.step

    def step_and_be_terminated(self: Trainer, number: int) -> Any:
        if number == 4 and not late:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, number)

    def be_terminated() -> None:
        assert late, "whoever terminates a run does not wait for an evaluation to begin and end"
        assert last.resolve().name == "000004"
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", step_and_be_terminated)
        with pytest.raises(SystemExit) as exit_of:
            measured("terminated", be_terminated)
    assert exit_of.value.code == 143
    assert last.resolve().name == f"{saved:06d}"
    continued, its_log = measured("terminated")
    assert equal(continued, whole)
    assert its_log == log


def test_a_run_is_a_lerobot_run(trained: Callable[..., Any], tmp_path: Path) -> None:
    policy, log = trained()
    checkpoints = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["000002", "000004", "000006", "last"]
    assert (checkpoints / "last").resolve() == checkpoints / "000006"
    reloaded = PixioACTPolicy.from_pretrained(checkpoints / "last" / "pretrained_model")
    assert equal(reloaded, policy)
    pipelines = make_pre_post_processors(
        reloaded.config, pretrained_path=str(checkpoints / "last" / "pretrained_model")
    )
    state = pipelines[0]({"observation.state": torch.full((3,), 0.5)})["observation.state"]
    assert state.shape == (1, 3)
    assert not torch.allclose(state, torch.full((1, 3), 0.5))
    theirs = reloaded.config.get_optimizer_preset().build(reloaded.get_optim_params())
    torch.optim.lr_scheduler.LambdaLR(theirs, lambda _: 1.0)  # any scheduler notes the initial rate
    load_optimizer_state(theirs, checkpoints / "last" / "training_state")  # into an optimizer as lerobot-train makes it
    assert len(theirs.state) == sum(weight.requires_grad for weight in reloaded.parameters())
    assert json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1]) == log[-1]
    assert log[-1]["gather_samples_per_s"] > log[-1]["samples_per_s"] > 0


def test_the_seed_decides_everything(trained: Callable[..., Any]) -> None:
    first, _ = trained("first")
    torch.rand(3)  # what happens outside does not matter
    again, _ = trained("again")
    other, _ = trained("other", seed=1)
    assert equal(first, again)
    assert not equal(first, other)


def test_every_pass_sees_every_frame_once_in_an_order_of_its_own() -> None:
    passes = [
        torch.cat([sample_rows(12, 4, seed=3, step=3 * number + step) for step in (1, 2, 3)]) for number in range(2)
    ]
    for rows in passes:
        assert rows.sort().values.tolist() == list(range(12))
    assert passes[0].tolist() != passes[1].tolist()
    assert len(sample_rows(3, 8, seed=0, step=5)) == 3


def test_a_blind_policy_trains_without_a_cache(trained: Callable[..., Any], make_config: MakeConfig) -> None:
    policy, log = trained("blind", config=make_config(blind=True), cache=None, encoder=None)
    assert policy.eyes is None
    assert math.isfinite(log[-1]["loss"])


def test_a_policy_looks_through_the_cameras_that_its_frames_have(make_config: MakeConfig, dataset_root: Path) -> None:
    frames = DatasetFrames(dataset_root, ["observation.images.wrist"])
    config = make_policy(make_config(), frames, seed=0).config
    assert set(config.image_features) == {"observation.images.wrist"}
    assert json.loads(policy_inputs(frames)).keys() == config.input_features.keys()


def test_bf16_is_amp(trained: Callable[..., Any], make_config: MakeConfig) -> None:
    exact, _ = trained("exact", config=make_config())
    mixed, log = trained("mixed", config=make_config(use_amp=True))
    assert not equal(exact, mixed)
    assert {weight.dtype for weight in mixed.parameters()} == {torch.float32}
    assert math.isfinite(log[-1]["loss"])


def test_what_does_not_belong_together_is_refused(
    trained: Callable[..., Any],
    make_config: MakeConfig,
    make_dataset: Callable[..., Path],
    dataset_root: Path,
    encoder: Encoder,
    tmp_path: Path,
) -> None:
    trained("run", steps=1)
    with pytest.raises(SettingError, match=r"another run \(batch_size is 8 there, 4 here\)"):
        trained("run", steps=1, batch_size=4)
    other = make_dataset(tmp_path / "other", seed=1)
    with pytest.raises(CacheError, match=r"another data set"):
        trained("a", dataset_root=other)
    stranger = create_encoder("pixio_vitt16", seed=9, width=32, depth=2, heads=2, image_size=64)
    with pytest.raises(CacheError, match=r"not by 'pixio_vitt16'"):
        trained("b", encoder=stranger)
    with pytest.raises(CheckpointError, match=r"trained on the encoder"):
        trained("c", encoder=stranger, config=make_config(encoder_hash=encoder.fingerprint))
    with pytest.raises(CacheError, match=r"averaged to 2 x 2.*--grid 0 or 4"):
        trained("d", config=make_config(grid=4))
    with pytest.raises(CacheError, match=r"at 64 x 64 pixels.*128 x 128"):
        trained("e", config=make_config(image_size=128))
    with pytest.raises(SettingError, match=r"trains from a feature cache"):
        trained("f", cache=None)
    one_eyed = make_dataset(tmp_path / "one_eyed", cameras=("observation.images.top",))
    features = make_policy(make_config(), DatasetFrames(dataset_root), seed=0).config.input_features
    with pytest.raises(DataError, match=r"no camera 'observation.images.wrist'.*observation.images.top"):
        trained("g", dataset_root=one_eyed, config=make_config(input_features=features))


def test_a_run_goes_on_where_the_same_encoder_lies_elsewhere(
    trained: Callable[..., Any], make_config: MakeConfig, encoder: Encoder, tmp_path: Path
) -> None:
    for name, seed in (("here", None), ("other", 9)):
        one = encoder if seed is None else encoder.redrawn(seed)
        one.save_pretrained(tmp_path / name)
    config = make_config(encoder=str(tmp_path / "here"))
    trained("run", steps=1, config=config, encoder=None)
    (tmp_path / "here").rename(tmp_path / "there")
    policy, _ = trained("run", steps=2, config=make_config(encoder=str(tmp_path / "there")), encoder=None)
    assert policy.config.encoder == str(tmp_path / "there")
    with pytest.raises(CheckpointError, match=r"trained on the encoder.*the one at hand"):
        trained("run", steps=3, config=make_config(encoder=str(tmp_path / "other")), encoder=None)


def test_a_run_goes_on_only_with_the_features_statistics_and_schedule_that_it_began_with(
    trained: Callable[..., Any], make_config: MakeConfig, make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    frames = DatasetFrames(make_dataset(tmp_path / "walks"))
    precise, rough = (load_encoder(make_config().encoder, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    whole, pooled, rounded = (
        build_cache(tmp_path / f"{name}.zarr", encoder, frames, grid=grid).path
        for name, encoder, grid in (("whole", precise, None), ("pooled", precise, 2), ("rounded", rough, 2))
    )
    run = partial(trained, dataset_root=frames, steps=2, encoder=None)
    run(cache=pooled)
    with pytest.raises(SettingError, match=r"another run \(cache_pooled_to is 2 there, None here\)"):
        run(cache=whole)
    with pytest.raises(SettingError, match=r"\(cache_encoder_dtype is 'float32' there, 'bfloat16' here\)"):
        run(cache=rounded)
    with pytest.raises(SettingError, match=r"\(steps is 2 there, 4 here\)"):
        run(cache=pooled, steps=4)
    written = tmp_path / "run" / "run.json"
    known = json.loads(written.read_text())
    written.write_text(json.dumps({key: known[key] for key in known if key != "statistics_sha256"}))
    with pytest.raises(SettingError, match=r"\(statistics_sha256 is not written down there, '\w+' here\)"):
        run(cache=pooled)
    written.write_text(json.dumps(known))
    frames.dataset.meta.stats["action"]["std"] *= 2  # pyright: ignore[reportOptionalSubscript]
    with pytest.raises(SettingError, match=r"\(statistics_sha256 is '\w+' there, '\w+' here\)"):
        run(cache=pooled)


def test_a_run_at_a_constant_rate_may_be_made_longer_but_not_shorter(
    trained: Callable[..., Any], make_config: MakeConfig
) -> None:
    at_once, _ = trained("at once", config=make_config(), steps=4)
    trained("longer", config=make_config(), steps=2)
    longer, _ = trained("longer", config=make_config(), steps=4)
    assert equal(longer, at_once)
    with pytest.raises(SettingError, match=r"trained for 4 steps already, not steps=3"):
        trained("longer", config=make_config(), steps=3)


def test_two_runs_at_once_in_one_folder_are_refused(
    trained: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "GRACE", 0.1)
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"), pytest.raises(SettingError, match=r"Another process trains in .*run"):
        trained("run", steps=1)
    trained("run", steps=1)


def test_a_run_starts_from_the_weights_of_another(
    trained: Callable[..., Any], make_config: MakeConfig, tmp_path: Path
) -> None:
    first, _ = trained("first")
    weights_of = tmp_path / "first" / "checkpoints" / "last" / "pretrained_model"
    still = {"optimizer_lr": 0.0, "optimizer_lr_encoder": 0.0}
    tuned, _ = trained("second", config=make_config(pretrained_path=weights_of, **still), steps=1)
    assert equal(first, tuned)


def test_a_run_leaves_curves_for_tensorboard(trained: Callable[..., Any], tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    _, log = trained(log_every=2)
    told = events.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    losses = [(point.step, pytest.approx(point.value)) for point in told.Scalars("loss")]
    assert losses == [(row["step"], row["loss"]) for row in log]
    assert [row["step"] for row in log] == [2, 4, 6]


def test_nan_in_the_demonstrations_is_found_before_training(
    trained: Callable[..., Any], make_config: MakeConfig, make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    root = make_dataset(tmp_path / "spoilt", spoilt=11)
    with pytest.raises(DataError, match=r"'action' holds NaN or infinity in 1 frames.*first in 11"):
        trained(dataset_root=root, config=make_config(blind=True), cache=None)


def test_a_gradient_that_is_not_finite_leaves_the_weights_as_they_were(
    make_config: MakeConfig, dataset_root: Path, cache: Path, encoder: Encoder
) -> None:
    frames = DatasetFrames(dataset_root)
    policy = make_policy(make_config(), frames, seed=0, encoder=encoder)
    demonstrations = Demonstrations(frames, policy, make_processors(policy, frames)[0], cache)
    trainer, before = Trainer(policy, demonstrations, steps=2, batch_size=8), [one.clone() for one in weights(policy)]
    next(policy.eyes.adapter.parameters()).register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(SettingError, match=r"gradient's norm became (nan|inf): training diverged. Lower optimizer_lr"):
        trainer.step(1)
    assert all(torch.equal(a, b) for a, b in zip(weights(policy), before, strict=True))


def test_attention_reads_a_cache_of_every_patch(
    trained: Callable[..., Any], make_config: MakeConfig, dataset_root: Path, encoder: Encoder, tmp_path: Path
) -> None:
    build_cache(tmp_path / "every.zarr", encoder, DatasetFrames(dataset_root))
    _, log = trained("attention", config=make_config(patches="attention"), cache=tmp_path / "every.zarr")
    assert math.isfinite(log[-1]["loss"])


@pytest.mark.slow
def test_lerobots_commands_train_and_reload_the_policy(
    dataset_root: Path, encoder_folder: Path, tmp_path: Path
) -> None:
    """In processes of their own, without a flag that names the plug-in."""
    script = Path(sys.executable).with_name("lerobot-train")
    common = [
        script,
        "--policy.device=cpu",
        "--dataset.repo_id=local/walks",
        f"--dataset.root={dataset_root}",
        "--dataset.video_backend=pyav",
        *("--batch_size=4", "--steps=2", "--save_freq=2", "--log_freq=1", "--env_eval_freq=0", "--num_workers=0"),
    ]
    small = ["--policy.dim_model=32", "--policy.n_heads=2", "--policy.chunk_size=5", "--policy.n_action_steps=5"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
    first, second = tmp_path / "first", tmp_path / "second"
    for command in (
        [
            *common,
            "--policy.type=pixio_act",
            f"--policy.encoder={encoder_folder}",
            *small,
            f"--output_dir={first}",
        ],
        [
            *common,
            f"--policy.path={first / 'checkpoints' / 'last' / 'pretrained_model'}",
            "--policy.push_to_hub=false",
            f"--output_dir={second}",
        ],
    ):
        process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert process.returncode == 0, process.stderr[-3000:]
    policy = PixioACTPolicy.from_pretrained(second / "checkpoints" / "last" / "pretrained_model")
    assert policy.config.encoder == str(encoder_folder)
