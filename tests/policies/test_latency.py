"""``pixio-latency``: a table for any checkpoint, whose parts add up."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors

from lerobot_policy_pixio import latency
from lerobot_policy_pixio.acting import load_policy
from pixio_robot.encoder import Encoder
from pixio_robot.errors import CheckpointError, SettingError

ACT = {"dim_model": 32, "n_heads": 2, "dim_feedforward": 64, "n_encoder_layers": 1, "chunk_size": 5}
DIFFUSION = {"horizon": 8, "down_dims": (16, 32), "n_groups": 4, "num_train_timesteps": 4}
POLICIES: dict[str, dict[str, Any]] = {
    "pixio_act": ACT | {"n_action_steps": 4},
    "pixio_diffusion": DIFFUSION | {"n_action_steps": 4, "feature_dim": 16},
    "act": ACT | {"n_action_steps": 1, "temporal_ensemble_coeff": 0.01, "push_to_hub": False},
    "diffusion": DIFFUSION | {"n_action_steps": 3, "push_to_hub": False},
}


@pytest.fixture
def save_policy(encoder_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    def save(kind: str, **changes: Any) -> Path:
        settings = POLICIES[kind] | {"device": "cpu", "pretrained_backbone_weights": None}
        if kind.startswith("pixio_"):
            settings |= {"encoder": str(encoder_folder), "grid": 2}
        config: Any = make_policy_config(kind, **(settings | changes))
        config.input_features = {
            "observation.state": PolicyFeature(FeatureType.STATE, (3,)),
            "observation.images.top": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)),
            "observation.images.wrist": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)),
        }
        config.output_features = {"action": PolicyFeature(FeatureType.ACTION, (3,))}
        folder = tmp_path / kind / "checkpoints" / "last" / "pretrained_model"
        get_policy_class(kind)(config).save_pretrained(folder)
        for pipeline in make_pre_post_processors(config):
            pipeline.save_pretrained(folder)
        return folder

    return save


@pytest.mark.parametrize("kind", POLICIES)
def test_the_parts_of_a_chunk_add_up(save_policy: Callable[..., Path], kind: str) -> None:
    row = latency.measure(save_policy(kind), repeats=1)  # of one chunk, p50 and p95 are that chunk
    assert row.total[0] == row.total[1] == pytest.approx(row.encoder[0] + row.head[0] + row.processors[0], abs=0.01)
    assert min(row.encoder + row.head + row.processors) > 0
    steps = POLICIES[kind]["n_action_steps"]
    assert row.total[0] / steps <= row.per_action[0] <= row.total[0] * 2


def test_a_slow_encoder_is_blamed_and_nothing_else(
    save_policy: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, encode = save_policy("pixio_act"), Encoder.forward

    def dawdle(self: Encoder, images: Any) -> Any:
        time.sleep(0.2)
        return encode(self, images)

    monkeypatch.setattr(Encoder, "forward", dawdle)
    row = latency.measure(folder, repeats=2)
    assert row.encoder[0] > 200 > row.head[0]
    assert 50 < row.per_action[0] < row.total[0]  # one look for four actions


def test_a_blind_policy_spends_nothing_on_looking(save_policy: Callable[..., Path]) -> None:
    assert latency.measure(save_policy("pixio_act", blind=True), repeats=2).encoder == [0, 0]


def test_a_policy_with_additions_by_peft_is_measured_with_them(
    save_policy: Callable[..., Path], tmp_path: Path
) -> None:
    folder = save_policy("pixio_act")
    policy: Any = get_policy_class("pixio_act").from_pretrained(folder)
    policy.config.pretrained_path = folder
    wrapped = policy.wrap_with_peft(peft_cli_overrides={"r": 4, "method_type": "LORA"})
    for part in (wrapped, wrapped.config, *make_pre_post_processors(wrapped.config)):
        part.save_pretrained(tmp_path / "adapted")
    names = [name for name, _ in load_policy(tmp_path / "adapted", wrapped.config).named_parameters()]
    assert any("lora_" in name for name in names)
    row = latency.measure(tmp_path / "adapted", repeats=1)
    assert row.encoder[0] > 0
    assert row.total[0] == pytest.approx(row.encoder[0] + row.head[0] + row.processors[0], abs=0.01)


def test_the_command_prints_a_table_and_writes_the_figures(
    save_policy: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, file = save_policy("pixio_diffusion").parents[2], tmp_path / "latency.json"
    words = [str(run), "--repeats=2", "--camera-size", "96", "128", f"--json={file}"]
    monkeypatch.setattr(sys, "argv", ["pixio-latency", *words])
    monkeypatch.setenv("COLUMNS", "150")
    latency.main()
    told = json.loads(file.read_text())
    assert [row["dtype"] for row in told["latency_ms"]] == ["float32", "bfloat16"]
    assert told["policy"] == "pixio_diffusion"
    assert told["cameras"] == {"observation.images.top": [3, 96, 128], "observation.images.wrist": [3, 96, 128]}
    printed = capsys.readouterr().out
    for row in told["latency_ms"]:
        assert f"{row['total'][0]:.2f} / {row['total'][1]:.2f}" in printed


def test_what_cannot_be_measured_is_refused(save_policy: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no policy checkpoint in .*nowhere"):
        latency.measure(tmp_path / "nowhere")
    with pytest.raises(SettingError, match=r"no device 'cuda:7'"):
        latency.measure(save_policy("pixio_act"), device="cuda:7")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile uses what torch deprecates
def test_a_compiled_policy_can_be_measured(save_policy: Callable[..., Path]) -> None:
    assert latency.measure(save_policy("pixio_act"), compiled=True, repeats=2).total[0] > 0
