import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pixio_pretrain import RunConfig, train, training
from pixio_pretrain.export import export_encoders, main
from pixio_pretrain.objectives import distill
from pixio_pretrain.objectives.base import EncoderConfig
from pixio_pretrain.objectives.distill import DistillConfig
from pixio_pretrain.objectives.pixpro import PixProConfig
from pixio_pretrain.run import Run
from pixio_robot import create_encoder, load_encoder
from pixio_robot.errors import CheckpointError

MakeConfig = Callable[..., RunConfig]


def test_an_encoder_of_a_stopped_run_is_the_one_that_the_run_would_have_ended_with(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config()
    with monkeypatch.context() as broken:
        broken.setattr(training, "write_encoders", lambda *_, **__: pytest.fail("stopped before its encoders"))
        with pytest.raises(pytest.fail.Exception, match="stopped"):
            train(config)
    main([config.folder])
    exported = Path(capsys.readouterr().out.strip())
    assert exported == Path(config.folder, "exported", "step-00000006", "encoder")
    encoder = load_encoder(exported)
    assert encoder.provenance["weights"] == "trained, step 6 of 6"
    assert encoder.provenance["licence"] == config.licence != "unknown"
    assert encoder.provenance["settings"]["batch_size"] == config.batch_size
    assert encoder.provenance["data"]["suite"] == "squares"
    assert encoder.fingerprint == load_encoder(train(config)).fingerprint


def test_a_run_is_exported_at_its_last_checkpoint_to_where_one_says(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="There is no checkpoint in"):
        export_encoders(tmp_path)
    config = make_config(steps=5)
    train(config)
    assert export_encoders(config.folder, tmp_path / "mine") == [tmp_path / "mine" / "encoder"]
    assert load_encoder(tmp_path / "mine" / "encoder").provenance["weights"] == "trained, step 5 of 5"


def distilled(make_config: MakeConfig, tmp_path: Path) -> RunConfig:
    """Train a student for two steps, under a teacher of which ``tmp_path`` holds the weights."""
    sizes: dict[str, Any] = {"depth": 1, "heads": 2, "patch_size": 8, "image_size": 32}
    create_encoder("pixio_vitt16", seed=0, width=16, **sizes).save_pretrained(tmp_path / "teacher")
    students = {"small": EncoderConfig(**sizes, width=8)}
    config = make_config(steps=2, objective=DistillConfig(teacher=str(tmp_path / "teacher"), students=students))
    train(config)
    return config


def test_a_run_of_distillation_is_exported_with_the_students_that_its_checkpoint_holds(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = distilled(make_config, tmp_path)
    (exported,) = export_encoders(config.folder)
    assert exported.name == "small"
    written, own = load_encoder(exported), load_encoder(Path(config.folder, "small"))
    assert written.fingerprint == own.fingerprint
    assert written.provenance["teacher"] == own.provenance["teacher"]


def test_a_run_reads_its_teacher_once_and_ends_without_its_optimiser(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    held: list[weakref.ref[torch.optim.Optimizer]] = []
    monkeypatch.setattr(distill, "load_encoder", lambda name: read.append(name) or load_encoder(name))
    start, write = training.start, training.write_encoders

    def note(*words: Any) -> Run:
        run = start(*words)
        held.append(weakref.ref(run.optimizer))
        return run

    def look(*words: Any, **names: Any) -> float:
        assert held[0]() is None
        return write(*words, **names)

    monkeypatch.setattr(training, "start", note)
    monkeypatch.setattr(training, "write_encoders", look)
    distilled(make_config, tmp_path)
    assert read == [str(tmp_path / "teacher")]


def test_a_run_whose_teacher_was_exchanged_is_not_exported(make_config: MakeConfig, tmp_path: Path) -> None:
    config = distilled(make_config, tmp_path)
    shutil.rmtree(tmp_path / "teacher")
    other = create_encoder("pixio_vitt16", seed=1, width=16, depth=1, heads=2, patch_size=8, image_size=32)
    other.save_pretrained(tmp_path / "teacher")
    with pytest.raises(CheckpointError, match=r"trained with a teacher of the sha256 .*Put those of then back"):
        export_encoders(config.folder)


def test_a_pyramid_comes_with_its_encoder_from_the_run_and_from_the_export_alike(make_config: MakeConfig) -> None:
    sizes: dict[str, Any] = {"encoder": "resnet18", "image_size": 64, "projection_hidden": 8, "projection_width": 8}
    config = make_config(steps=1, batch_size=2, objective=PixProConfig(**sizes, fpn_levels=2, fpn_width=8))
    folder = train(config)
    (exported,) = export_encoders(config.folder)
    own, theirs = (load_file(place / "fpn.safetensors") for place in (folder, exported))
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[key], theirs[key]) for key in own)
