from collections.abc import Callable
from pathlib import Path

import pytest

from pixio_pretrain import RunConfig, train, training
from pixio_pretrain.export import export_encoders, main
from pixio_robot import load_encoder
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
