"""Training that begins with an encoder's weights."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pixio_pretrain import RunConfig, train, training
from pixio_pretrain.checkpoint import checkpoints, read_facts
from pixio_pretrain.objectives import create_objective
from pixio_pretrain.objectives.masked import MaskedAutoencoder
from pixio_pretrain.optim import OptimizerConfig
from pixio_pretrain.run import Run
from pixio_pretrain.trained import load_trained
from pixio_robot import Encoder, create_encoder, load_encoder
from pixio_robot.encoder import EncoderSpec
from pixio_robot.errors import CheckpointError, SettingError
from pixio_robot.nn import sincos_positions

MakeConfig = Callable[..., RunConfig]
TINY: dict[str, Any] = {"width": 32, "depth": 2, "heads": 2, "patch_size": 8}
DECODER: dict[str, Any] = {"decoder_width": 32, "decoder_depth": 2, "decoder_heads": 2, "mask_block": 2}


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """An encoder's folder."""
    encoder = Encoder(EncoderSpec(family="pixio", **TINY, image_size=32, class_tokens=2))
    encoder.save_pretrained(tmp_path / "trained")
    return tmp_path / "trained"


def begun(weights: Path | str, objective: str = "pixio", **changes: Any) -> MaskedAutoencoder:
    sizes = TINY | {"image_size": 32, "class_tokens": 2} | DECODER | changes
    model = create_objective(objective, seed=1, initial_weights=str(weights), **sizes)
    assert isinstance(model, MaskedAutoencoder)
    fresh = {key: value.clone() for key, value in model.state_dict().items()}
    model.begin()
    for key, value in model.state_dict().items():
        assert key.startswith("vit.") or torch.equal(value, fresh[key]), "the decoder is not from there"
    return model


def test_the_encoder_is_the_given_one(trained: Path) -> None:
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    ours, theirs = begun(trained).encoder(images), load_encoder(trained)(images)
    assert torch.equal(ours.patches, theirs.patches)
    assert torch.equal(ours.classes, theirs.classes)
    assert any(parameter.requires_grad for parameter in begun(trained).vit.parameters())


def test_at_another_size_it_sees_what_the_given_one_sees_there(trained: Path) -> None:
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    ours, theirs = begun(trained, image_size=64).encoder(images), load_encoder(trained)(images)
    assert torch.allclose(ours.patches, theirs.patches, atol=1e-5)


def test_maes_fixed_positions_stay_fixed(tmp_path: Path) -> None:
    create_encoder("mae_vitt16", seed=0, image_size=64).save_pretrained(tmp_path / "mae")
    changes = {"encoder": "mae_vitt16", "image_size": 128, "width": None, "depth": None, "heads": None}
    model = begun(tmp_path / "mae", "mae", **changes, patch_size=None, class_tokens=None)
    assert torch.equal(model.vit.pos_embed, sincos_positions(192, 8, 1))
    assert not model.vit.pos_embed.requires_grad
    given = load_encoder(tmp_path / "mae").backbone.state_dict()
    assert torch.equal(model.vit.state_dict()["blocks.3.mlp.fc1.weight"], given["blocks.3.mlp.fc1.weight"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": 48, "heads": 3}, "width 32, not 48, heads 2, not 3: say objective.width=32 objective.heads=2"),
        ({"class_tokens": 8}, "class_tokens 2, not 8: say objective.class_tokens=2"),
    ],
)
def test_other_sizes_are_refused_with_what_to_say(trained: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        begun(trained, **changes)


def test_a_row_of_the_table_is_named(tmp_path: Path) -> None:
    create_encoder("pixio_vits16", seed=0).save_pretrained(tmp_path / "small")
    model = create_objective("pixio", encoder="pixio_vitt16", initial_weights=str(tmp_path / "small"))
    with pytest.raises(SettingError, match=r"say objective\.encoder=pixio_vits16, too"):
        model.begin()


def test_a_run_knows_its_beginning_and_needs_it_no_more(
    make_config: MakeConfig, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(steps=4, checkpoint_every=2, optimizer=OptimizerConfig(base_lr=1e-12, warmup=1))
    config.objective.initial_weights = str(trained)
    encoder = load_encoder(trained)
    stop_at(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    monkeypatch.undo()
    facts = read_facts(checkpoints(Path(config.folder) / "checkpoints")[-1])
    assert facts["identity"]["initial_weights_sha256"] == encoder.fingerprint
    shutil.rmtree(trained)
    assert load_trained(config.folder).facts["step"] == 2
    ours, theirs = load_encoder(train(config)).backbone.state_dict(), encoder.backbone.state_dict()
    assert all(torch.allclose(value, theirs[key], atol=1e-6) for key, value in ours.items())
    found = json.loads(Path(config.folder, "result.json").read_text())["identity"]
    assert found["initial_weights_sha256"] == encoder.fingerprint
    assert train(config)  # finished, and still without them
    with pytest.raises(CheckpointError, match="trained"):
        train(replace(config, folder=config.folder + "-again"))


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have trainings break off before a step."""
    inner = training._train_step

    def interrupted(run: Run, batches: Any) -> Any:
        if run.step == step:
            raise KeyboardInterrupt
        return inner(run, batches)

    monkeypatch.setattr(training, "_train_step", interrupted)
