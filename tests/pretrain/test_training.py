import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PixioModel

from pixio_pretrain import RunConfig, train, training
from pixio_pretrain.checkpoint import load_checkpoint, save_checkpoint
from pixio_pretrain.config import OptimizerConfig, ViewsConfig
from pixio_pretrain.data import open_frames
from pixio_pretrain.objectives.masked import PixioConfig
from pixio_pretrain.optim import learning_rate, make_optimizer
from pixio_pretrain.run import identity, start
from pixio_robot import load_encoder
from pixio_robot.errors import CheckpointError, SettingError, UnknownNameError

MakeConfig = Callable[..., RunConfig]


def tensors(state: Any) -> list[torch.Tensor]:
    """Every tensor of a checkpoint, in a fixed order."""
    if isinstance(state, torch.Tensor):
        return [state]
    parts = list(state.values()) if isinstance(state, dict) else state if isinstance(state, list) else []
    return [tensor for part in parts for tensor in tensors(part)]


def log_of(config: RunConfig) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in Path(config.folder, "log.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in row if key not in ("images_per_s", "elapsed_s")} for row in rows]


@pytest.mark.parametrize("killed_in", ["save", "step"])
def test_a_killed_run_ends_bit_equal_to_an_unbroken_one(
    killed_in: str, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken, killed = make_config(), make_config(folder=str(tmp_path / "killed"))
    train(unbroken)

    class Killed(BaseException):
        pass

    def die_at_step_five(run: Any, batch: Any, step: Callable[..., Any] = training._train_step) -> dict[str, float]:
        if run.step == 4:
            raise Killed
        return step(run, batch)

    def die_while_writing(source: Path, target: Path, replace: Callable[..., Any] = os.replace) -> None:
        if killed_in == "save" and torch.load(source, weights_only=True)["state"]["step"] == 4:
            raise Killed
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(training, "_train_step", die_at_step_five)
        patch.setattr("pixio_pretrain.checkpoint.os.replace", die_while_writing)
        with pytest.raises(Killed):
            train(killed)
    with Path(killed.folder, "log.jsonl").open("a") as log:
        log.write('{"step": 5, "lo')  # a line cut short
    assert start(killed).step == (2 if killed_in == "save" else 4)
    torch.rand(5)  # the state of the caller's generator must not matter
    train(killed)

    whole, resumed = (
        load_checkpoint(Path(c.folder, "checkpoint.pt"), identity=identity(c, open_frames(c.data)))
        for c in (unbroken, killed)
    )
    assert whole is not None
    assert resumed is not None
    assert len(tensors(whole)) > 100
    assert all(torch.equal(a, b) for a, b in zip(tensors(whole), tensors(resumed), strict=True))
    assert log_of(unbroken) == log_of(killed)
    assert [row["step"] for row in log_of(killed)] == [1, 2, 3, 4, 5, 6]


def test_the_loss_falls_and_the_held_out_loss_is_measured(make_config: MakeConfig) -> None:
    config = make_config(steps=40, evaluate_every=20, optimizer=OptimizerConfig(base_lr=0.1, warmup=5))
    train(config)
    measured = [row["held_out_loss"] for row in log_of(config) if "held_out_loss" in row]
    assert len(measured) == 2
    assert measured[1] < measured[0] < 1


def test_a_finished_run_is_left_as_it_is(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(steps=2)
    folder = train(config)
    before = load_encoder(folder).fingerprint
    monkeypatch.setattr(training, "_fit", lambda run: pytest.fail("trained again"))
    assert load_encoder(train(config)).fingerprint == before


def test_the_encoder_folder_loads_here_and_in_transformers_with_equal_features(make_config: MakeConfig) -> None:
    config = make_config(steps=2)
    folder = train(config, command="pixio-pretrain run=tiny data=PATH")
    ours, theirs = load_encoder(folder), PixioModel.from_pretrained(folder)
    assert ours.fingerprint == start(config).model.encoder.fingerprint
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
    assert "`pixio-pretrain run=tiny data=PATH`" in card
    assert "Which of 3 tasks" in card
    assert {file.name for file in folder.iterdir()} >= {"loss_curve.png", "reconstructions.png"}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"batch_size": 4}, r"batch_size \(there 8, now 4\)"),
        ({"views": ViewsConfig(crop_scale=0.9)}, r"views.crop_scale \(there 0.5, now 0.9\), views.held_out \("),
        ({"optimizer": OptimizerConfig(base_lr=1.0, warmup=2)}, r"optimizer.base_lr \(there 0.1, now 1.0\)"),
    ],
)
def test_a_folder_of_a_run_with_other_settings_is_refused_by_their_names(
    change: dict[str, Any], named: str, make_config: MakeConfig
) -> None:
    config = make_config()
    Path(config.folder).mkdir()
    save_checkpoint(Path(config.folder, "checkpoint.pt"), {}, identity=identity(config, open_frames(config.data)))
    with pytest.raises(CheckpointError, match=named):
        train(make_config(**change))


def test_a_damaged_checkpoint_is_refused(make_config: MakeConfig) -> None:
    config = make_config()
    Path(config.folder).mkdir()
    Path(config.folder, "checkpoint.pt").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(CheckpointError, match="damaged or foreign"):
        train(config)


def test_a_run_that_diverges_stops_with_advice(make_config: MakeConfig) -> None:
    with pytest.raises(SettingError, match=r"diverged\. Try a smaller optimizer\.base_lr"):
        train(make_config(steps=20, precision="fp32", optimizer=OptimizerConfig(base_lr=1e30, warmup=0)))


def test_the_learning_rate_rises_from_zero_and_falls_to_zero() -> None:
    rates = [learning_rate(step, steps=100, warmup=10, peak=2.0) for step in range(101)]
    assert rates[0] == 0
    assert rates[5] == pytest.approx(1.0)
    assert rates[10] == max(rates) == 2.0
    assert rates[55] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0, abs=1e-9)


def test_only_tensors_of_one_dimension_escape_weight_decay(make_config: MakeConfig) -> None:
    model = start(make_config()).model
    decayed, free = make_optimizer(model, OptimizerConfig()).param_groups
    assert decayed["weight_decay"] == 0.05
    assert free["weight_decay"] == 0
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)] for p in free["params"]} == {
        name for name in names.values() if name.endswith(".bias") or "norm" in name
    }
    assert {"vit.cls_token", "vit.pos_embed", "mask_token", "decoder_pos_embed"} <= {
        names[id(p)] for p in decayed["params"]
    }


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
        lambda: RunConfig(data="", folder="", steps=1, workers=-1),
        lambda: ViewsConfig(crop_scale=0),
        lambda: OptimizerConfig(base_lr=0),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: Callable[[], object]) -> None:
    with pytest.raises(SettingError):
        wrong()


def test_an_unknown_encoder_is_refused_before_any_frame_is_read(make_config: MakeConfig) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'pixio_vits16'"):
        train(make_config(data="/nowhere", objective=PixioConfig(encoder="pixio_vit_s16")))
