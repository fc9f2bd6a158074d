"""What training computes in."""

from pathlib import Path

import pytest
import torch

from pixio_pretrain import train
from pixio_pretrain.config import RunConfig
from pixio_pretrain.evaluation import TASKS, EvalConfig, evaluate
from pixio_pretrain.geometry.cli import train_depth, train_views
from pixio_pretrain.geometry.fitting import FitConfig
from pixio_pretrain.objectives.masked import PixioConfig
from pixio_pretrain.plan import PlanConfig, plan
from pixio_pretrain.precision import autocast, resolve
from pixio_robot.errors import SettingError


@pytest.fixture(params=["fp32", "bf16"])
def natural(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What "auto" has to mean on a CPU that multiplies bfloat16, or does not."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: request.param == "bf16")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return request.param


def test_auto_is_bfloat16_where_the_cpu_multiplies_it(natural: str) -> None:
    assert resolve("auto", "cpu") == natural
    with autocast("auto", "cpu"):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == {"bf16": torch.bfloat16, "fp32": torch.float32}[natural]


def test_what_was_said_stands(natural: str) -> None:
    assert [resolve(said, device) for said in ("bf16", "fp32") for device in ("cpu", "cuda")] == ["bf16"] * 2 + [
        "fp32"
    ] * 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="an old GPU may have no bfloat16")
def test_a_gpu_elsewhere_has_bfloat16_and_other_devices_are_not_trusted(natural: str) -> None:
    assert resolve("auto", "cuda:1") == "bf16"
    assert resolve("auto", "mps") == "fp32"


def test_settings_hold_what_is_computed_in(natural: str) -> None:
    """So that a run's identity, its card and a record say it, and a machine that computes otherwise is refused."""
    run = RunConfig(data="-", folder="-", steps=1, objective=PixioConfig())
    assert (run.precision, run.identity()["precision"]) == (natural, natural)
    assert EvalConfig(encoder="-", data="-").precision == natural
    assert FitConfig().precision == natural


def test_a_plan_speaks_of_its_gpu_and_not_of_this_cpu(natural: str) -> None:
    assert PlanConfig(steps=1, batch_size=8, gpu="h100").precision == "bf16"
    assert PlanConfig(steps=1, batch_size=8, gpu="measured").precision == natural


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_here_is_refused_before_any_data_is_read(device: str, tmp_path: Path) -> None:
    place = {"data": "/nowhere", "folder": str(tmp_path)}
    starts = [
        lambda: train(RunConfig(**place, steps=1000, objective=PixioConfig(), device=device)),
        lambda: evaluate(EvalConfig(**place, encoder="pixels", task=TASKS["knn"](), device=device)),
        lambda: train_depth("/nowhere", tmp_path, config=FitConfig(device=device)),
        lambda: train_views("/nowhere", tmp_path, config=FitConfig(device=device)),
        lambda: plan(PlanConfig(steps=1, device=device, gpu="measured", objective=PixioConfig())),
    ]
    for start in starts:
        with pytest.raises(SettingError, match=rf"device={device} cannot be used here, where there are cpu.*: \w"):
            start()
    assert "8 x H100" in plan(PlanConfig(steps=1, device=device, gpu="h100", objective=PixioConfig()))


def test_other_words_are_refused() -> None:
    with pytest.raises(SettingError, match="auto, bf16 or fp32, not 'fp16'"):
        resolve("fp16", "cpu")
