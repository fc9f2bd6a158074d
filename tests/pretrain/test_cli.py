import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from pixio_pretrain import RunConfig, cli

RUNS = sorted(path.stem for path in Path(cli.__file__).parent.glob("conf/run/*.yaml"))
TINY = "width=32 depth=2 heads=2 class_tokens=2 image_size=32 patch_size=8 decoder_width=32 decoder_depth=2"


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["pixio-pretrain", *words])
    cli.main()


@pytest.mark.parametrize("name", RUNS)
def test_every_run_builds_and_opens_with_its_command(name: str) -> None:
    with initialize_config_module("pixio_pretrain.conf", version_base="1.3"):
        config = OmegaConf.to_object(compose("config", [f"run={name}", "data=somewhere"]))
    assert isinstance(config, RunConfig)
    replace(config.objective, width=24, depth=1, heads=3).build()
    text = (Path(cli.__file__).parent / f"conf/run/{name}.yaml").read_text()
    assert text.splitlines()[1].startswith(f"# pixio-pretrain run={name} data=PATH")
    assert "   -> " in text.splitlines()[1]
    assert yaml.safe_load(text)["folder"] == f"outputs/pretrain/{name}"


def test_the_settings_of_the_command_line_are_these(store: Path) -> None:
    # A new setting is a decision: add it here, and ask whether another can go.
    assert set(RunConfig.__dataclass_fields__) == {
        *("data", "folder", "licence", "steps", "batch_size", "seed", "precision", "device", "threads", "workers"),
        *("log_every", "evaluate_every", "checkpoint_every", "objective", "optimizer", "views"),
    }


def test_the_command_trains_where_it_is_told_and_litters_nowhere(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = [f"objective.{word}" for word in TINY.split()]
    wanted = ["steps=2", "batch_size=4", "views.held_out_views=8", "folder=here"]
    call(monkeypatch, "run=vitt16_metaworld", f"data={store}", *sizes, "objective.decoder_heads=2", *wanted)
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
    assert Path.cwd() == tmp_path
    card = (tmp_path / "here/encoder/README.md").read_text()
    assert "`pixio-pretrain run=vitt16_metaworld objective.width=32" in card
    assert str(tmp_path) not in card
    assert str(store) not in card + (tmp_path / "here/encoder/config.json").read_text()


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["run=vitt16_metaworl"], "Available options in 'run':\n\tvitt16_metaworld"),
        (["run=vitt16_metaworld", "stepps=2"], "Key 'stepps' not in 'RunConfig'"),
        (["run=vitt16_metaworld", "objective.mask_blok=2"], "Key 'mask_blok' not in 'PixioConfig'"),
        (["run=vitt16_metaworld", "+stepps=2"], "Key 'stepps' not in 'RunConfig'"),
        (["run=vitt16_metaworld", "+views.crop=1"], "Key 'crop' not in 'ViewsConfig'"),
        (["run=vitt16_metaworld", "steps=many"], "Value 'many' of type 'str' could not be converted to Integer"),
        (["run=vitt16_metaworld", "data=/nowhere"], "pixio-pretrain: There is no folder at /nowhere"),
        (["run=vitt16_metaworld", "data=.", "objective.mask_block=5"], "nearest that does: 4"),
        (["run=vitt16_metaworld", "data=.", "steps=0"], "steps must be at least 1"),
        (["run=vitt16_metaworld"], "missing mandatory value: data"),
    ],
)
def test_a_wrong_word_is_answered_without_a_traceback(
    words: list[str], answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        call(monkeypatch, *words)
    said = capsys.readouterr().err + str(exit_.value)
    assert answer in said
    assert "Traceback" not in said
