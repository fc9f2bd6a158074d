import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from PIL import Image
from transformers import PixioModel

from pixio_pretrain import RunConfig, train
from pixio_pretrain.checkpoint import checkpoints, read_facts
from pixio_pretrain.config import LoadingConfig, LogConfig, OptimizerConfig, ParallelConfig, ViewsConfig
from pixio_pretrain.distributed import World
from pixio_pretrain.objectives.masked import MaskedAutoencoder, MaskedOutput, PixioConfig
from pixio_pretrain.run import start
from pixio_robot import load_encoder
from pixio_robot.errors import SettingError, UnknownNameError

MakeConfig = Callable[..., RunConfig]
ALONE = World(device=torch.device("cpu"))


def log_of(config: RunConfig) -> list[dict[str, float]]:
    return [json.loads(line) for line in Path(config.folder, "log.jsonl").read_text().splitlines()]


def test_the_loss_falls_and_the_held_out_loss_is_measured(make_config: MakeConfig) -> None:
    config = make_config(
        steps=40, evaluate_every=20, checkpoint_every=40, optimizer=OptimizerConfig(base_lr=0.1, warmup=5)
    )
    train(config)
    measured = [row["held_out_loss"] for row in log_of(config) if "held_out_loss" in row]
    assert len(measured) == 2
    assert measured[1] < measured[0] < 1


def test_every_look_is_at_the_same_held_out_samples(make_config: MakeConfig) -> None:
    runs = [start(make_config(folder=folder), ALONE) for folder in ("a", "b")]
    batches = [[batch["images"] for batch in run.held_out] for run in runs]
    assert [len(images) for images in batches[0]] == [8, 4]
    assert all(torch.equal(one, other) for one, other in zip(*batches, strict=True))


def test_the_encoder_folder_loads_here_and_in_transformers_with_equal_features(make_config: MakeConfig) -> None:
    config = make_config(steps=2)
    folder = train(config, command="pixio-pretrain run=tiny data=PATH")
    assert folder == Path(config.folder, "encoder")
    ours, theirs = load_encoder(folder), PixioModel.from_pretrained(folder)
    assert ours.fingerprint == start(config, ALONE).model.encoder.fingerprint
    images = torch.rand(2, 3, 32, 32)
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        expected = theirs((images - mean) / std).last_hidden_state
    tokens = ours(images)
    torch.testing.assert_close(torch.cat([tokens.classes, tokens.patches], dim=1), expected, rtol=0, atol=1e-5)
    assert ours.provenance["licence"] == "cc-by-4.0"
    assert ours.provenance["data"]["suite"] == "squares"
    assert ours.provenance["settings"]["steps"] == 2


def test_the_model_card_tells_what_was_measured(make_config: MakeConfig) -> None:
    config = make_config(steps=2)
    folder = train(config, command="pixio-pretrain run=tiny data=PATH")
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlicense: cc-by-4.0\n")
    assert f"**{log_of(config)[-1]['held_out_loss']:.3f}**" in card
    assert json.loads(Path(config.folder, "result.json").read_text())["held_out_loss"] == pytest.approx(
        log_of(config)[-1]["held_out_loss"]
    )
    assert "`pixio-pretrain run=tiny data=PATH`" in card
    assert "Which of 3 tasks" in card
    assert str(Path(config.data)) not in card + (folder / "config.json").read_text()
    for picture in ("loss_curve.png", "picture.png"):
        assert f"({picture})" in card
        with Image.open(folder / picture) as image:
            assert image.width > 100


def test_the_model_card_of_joined_sources_names_both(make_config: MakeConfig, store: Path) -> None:
    card = (train(make_config(steps=2, data=f"{store}+{store}")) / "README.md").read_text()
    part = "(kind frame store, frames 48, suite squares, tasks red and green and blue)"
    assert f"kind joined sources, frames 96, {part}, {part}, 24 episodes" in card.replace(", complete True", "")
    assert "Which of 6 tasks" in card


def write_store(folder: Path, *, side: int, episodes: int) -> str:
    """Write a frame store of two tasks."""
    frames = np.random.default_rng(0).integers(0, 256, size=(2 * episodes, side, side, 3), dtype=np.uint8)
    group = zarr.create_group(folder, attributes={"tasks": ["one", "other"], "complete": True})
    group.create_array("frames", data=frames)
    group.create_array("episode", data=np.arange(episodes, dtype=np.int32).repeat(2))
    group.create_array("task", data=(np.arange(episodes) % 2).astype(np.int16).repeat(2))
    return str(folder)


def test_frames_of_several_sizes_are_probed(make_config: MakeConfig, store: Path, tmp_path: Path) -> None:
    data = f"{store}+{write_store(tmp_path / 'small.zarr', side=36, episodes=4)}"
    assert "Which of 5 tasks" in (train(make_config(steps=2, data=data)) / "README.md").read_text()


def test_a_probe_that_cannot_be_is_left_out(
    make_config: MakeConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = train(make_config(steps=2, data=write_store(tmp_path / "two.zarr", side=40, episodes=2)))
    assert "Which of" not in (folder / "README.md").read_text()
    assert "goes without the task probe: All frames belong to one episode" in caplog.text


def test_encoders_are_written_before_their_evidence(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> str:
        raise RuntimeError("no evidence")

    monkeypatch.setattr("pixio_pretrain.card._probe", broken)
    config = make_config(steps=2)
    with pytest.raises(RuntimeError, match="no evidence"):
        train(config)
    assert load_encoder(config.folder).provenance["held_out"]["loss"] > 0


def test_steps_are_compiled_and_looks_are_not(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    learning: list[bool] = []

    def note(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., object]:
        learning.append(torch.is_grad_enabled())
        return graph.forward

    compile_ = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compile_(module, backend=note))
    config = make_config(steps=3, evaluate_every=1, parallel=ParallelConfig(compile=True))
    train(config)
    assert len(learning) >= 1
    assert all(learning)
    train(replace(config, folder=f"{config.folder}-plain", parallel=ParallelConfig()))
    plain = log_of(replace(config, folder=f"{config.folder}-plain"))
    assert [row["held_out_loss"] for row in log_of(config)] == pytest.approx([row["held_out_loss"] for row in plain])


def test_pictures_of_the_same_samples_are_kept_while_training(make_config: MakeConfig) -> None:
    config = make_config(steps=4, evaluate_every=2)
    train(config)
    files = sorted(Path(config.folder, "pictures").iterdir())
    assert [file.name for file in files] == ["step-00000002.png", "step-00000004.png"]
    early, late = (np.asarray(Image.open(file)) for file in files)
    truth = slice(2 * early.shape[0] // 3, None)  # rows of images: seen, rebuilt, true
    assert np.array_equal(early[truth], late[truth])
    assert not np.array_equal(early, late)


def spoil(monkeypatch: pytest.MonkeyPatch, spoiled: Callable[[int], bool], value: float = float("nan")) -> None:
    """Make the loss of some training steps, counted from 1, what no loss should be."""
    step = 0

    def forward(self: MaskedAutoencoder, *args: Any, plain: Any = MaskedAutoencoder.forward, **batch: Any) -> Any:
        nonlocal step
        output: MaskedOutput = plain(self, *args, **batch)
        step += self.training and output.loss.requires_grad
        return output._replace(loss=output.loss * value) if self.training and spoiled(step) else output

    monkeypatch.setattr(MaskedAutoencoder, "forward", forward)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_without_a_finite_loss_is_left_out_and_reported(
    value: float, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(steps=4, checkpoint_every=1)
    monkeypatch.setattr("pixio_pretrain.run.count_flops", lambda *_: 1.0)  # it runs the model, too
    spoil(monkeypatch, lambda step: step == 3, value)
    folder = train(config)
    rows = log_of(config)
    assert [row["bad_steps"] for row in rows] == [0, 0, 1, 1]
    assert ["loss" in row for row in rows] == [True, True, False, True]
    assert "at step 3: left out." in caplog.text
    assert "1 steps left out" in (folder / "README.md").read_text()
    places = checkpoints(Path(config.folder, "checkpoints"))
    assert [place.name for place in places] == ["step-00000002", "step-00000004"]
    assert all(parameter.isfinite().all() for parameter in load_encoder(folder).parameters())


def test_repeated_bad_steps_stop_the_run_at_its_last_good_checkpoint_with_advice(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(steps=20, checkpoint_every=1, max_bad_steps=3)
    monkeypatch.setattr("pixio_pretrain.run.count_flops", lambda *_: 1.0)
    spoil(monkeypatch, lambda step: step == 2 or step > 4)
    said = r"at step 7, the last of 3 bad steps in a row: .* smaller optimizer\.base_lr than 0\.1"
    with pytest.raises(SettingError, match=said):
        train(config)
    last = checkpoints(Path(config.folder, "checkpoints"))[-1]
    facts = read_facts(last)
    assert (facts["step"], facts["bad_steps"], facts["bad_in_a_row"]) == (4, 1, 0)


def test_a_run_whose_last_weights_have_no_finite_held_out_loss_is_not_finished(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(steps=3, evaluate_every=10)
    monkeypatch.setattr("pixio_pretrain.training.mean_loss", lambda *_: float("nan"))
    with pytest.raises(SettingError, match="held-out loss is nan after the last step: the run has diverged"):
        train(config)
    assert [place.name for place in checkpoints(Path(config.folder, "checkpoints"))] == ["step-00000002"]
    assert not Path(config.folder, "result.json").exists()


def test_a_run_that_diverges_by_itself_stops(make_config: MakeConfig) -> None:
    optimizer = OptimizerConfig(base_lr=1e30, warmup=0)
    with pytest.raises(SettingError, match="the run has diverged"):
        train(make_config(steps=30, precision="fp32", optimizer=optimizer))


def test_training_does_not_seed_the_callers_generator(make_config: MakeConfig, tmp_path: Path) -> None:
    drawn = []
    for seed in (3, 4):
        torch.manual_seed(seed)
        train(make_config(steps=2, folder=str(tmp_path / f"run{seed}")))
        drawn.append(torch.rand(3))
    assert not torch.equal(*drawn)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: RunConfig(data="", folder="", steps=0),
        lambda: RunConfig(data="", folder="", steps=1, precision="fp8"),
        lambda: RunConfig(data="", folder="", steps=1, threads=-1),
        lambda: RunConfig(data="", folder="", steps=1, max_bad_steps=0),
        lambda: ViewsConfig(crop_scale=0),
        lambda: LoadingConfig(workers=-1),
        lambda: ParallelConfig(strategy="dpp"),
        lambda: ParallelConfig(accumulate=0),
        lambda: LogConfig(every=0),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: Callable[[], object]) -> None:
    with pytest.raises(SettingError):
        wrong()


def test_an_unknown_encoder_is_refused_before_any_frame_is_read(make_config: MakeConfig) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'pixio_vits16'"):
        train(make_config(data="/nowhere", objective=PixioConfig(encoder="pixio_vit_s16")))


def test_a_batch_that_cannot_be_divided_is_refused_with_the_nearest_that_can(make_config: MakeConfig) -> None:
    config = make_config(parallel=ParallelConfig(accumulate=3))
    with pytest.raises(SettingError, match=r"batch_size=8 cannot be divided .* nearest: 6"):
        start(config, replace(ALONE, size=2))


def test_cameras_and_stride_reach_the_data(make_config: MakeConfig) -> None:
    with pytest.raises(SettingError, match="cameras and stride belong to a LeRobotDataset"):
        train(make_config(views=ViewsConfig(stride=5)))
