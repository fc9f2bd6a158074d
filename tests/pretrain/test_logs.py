import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pixio_pretrain.config import LogConfig
from pixio_pretrain.logs import Logs, read_rows
from pixio_pretrain.objectives.masked import PixioConfig
from pixio_pretrain.speed import Meter, count_flops, matmul_ceiling
from pixio_robot.errors import SettingError, UnknownNameError


def open_logs(folder: Path, *trackers: str, step: int = 0) -> Logs:
    return Logs(folder, LogConfig(trackers=list(trackers)), settings={"steps": 9}, step=step)


def test_a_resumed_log_has_each_step_once(tmp_path: Path) -> None:
    with open_logs(tmp_path) as logs:
        for step in (1, 2, 3):
            logs.write({"step": step, "loss": 1.0 / step})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # a line cut short
    with open_logs(tmp_path, step=2) as logs:
        logs.write({"step": 3, "loss": 7.0})
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}, {"step": 3, "loss": 7.0}]
    assert read_rows(tmp_path, 1) == rows[:1]


def test_what_is_not_finite_is_left_out_of_the_log(tmp_path: Path) -> None:
    with open_logs(tmp_path) as logs:
        logs.write({"step": 1, "loss": float("nan"), "lr": 0.5})
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1, "lr": 0.5}\n'


def test_tensorboard_gets_curves_and_pictures_and_hides_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    for begin, loss in ((0, 1.0), (2, 2.0)):
        with open_logs(tmp_path, "tensorboard", step=begin) as logs:
            for step in range(begin + 1, begin + 5):
                logs.write({"step": step, "loss": loss})
            logs.show(Image.new("RGB", (4, 4), "red"), begin + 4)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(point.step, point.value) for point in events.Scalars("loss")] == [
        *((1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0), (5, 2.0), (6, 2.0))
    ]
    assert events.Images("held_out")[-1].step == 6
    assert (tmp_path / "pictures/step-00000006.png").exists()


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_wandb_and_trackio_get_the_same_rows_and_go_on_under_the_same_name(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[str, Any]] = []
    double = SimpleNamespace(
        init=lambda **settings: said.append(("init", settings)),
        log=lambda row, step: said.append(("log", (row, step))),
        Image=lambda picture: picture.size,
        finish=lambda: said.append(("finish", None)),
    )
    monkeypatch.setitem(sys.modules, package, double)
    for step in (0, 1):
        with open_logs(tmp_path, package, step=step) as logs:
            logs.write({"step": step + 1, "loss": 3.0, "lr": float("inf")})
            logs.show(Image.new("RGB", (5, 4)), step + 1)
    first, second = (settings for word, settings in said if word == "init")
    assert first == second
    assert first["resume"] == "allow"
    assert first["config"] == {"steps": 9}
    assert ("log", ({"loss": 3.0}, 1)) in said
    assert ("log", ({"held_out": (5, 4)}, 2)) in said
    assert said[-1] == ("finish", None)


@pytest.mark.parametrize("package", ["wandb", "trackio", "tensorboard"])
def test_a_tracker_that_is_not_installed_is_answered_with_how_to_install_it(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (package, "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SettingError, match=f"pip install {package}"):
        open_logs(tmp_path, package)


def test_an_unknown_tracker_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'tensorboard'"):
        open_logs(tmp_path, "tensorbord")


def test_floating_point_operations_are_those_of_the_matrix_products() -> None:
    config = PixioConfig(
        width=16, depth=1, heads=2, patch_size=8, image_size=32, class_tokens=2, decoder_width=8, decoder_depth=1,
        decoder_heads=2, mask_block=2,
    )  # fmt: skip
    model = config.build()
    batch = {"images": torch.zeros(3, 3, 32, 32, dtype=torch.uint8), "noise": torch.rand(3, 4)}
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def block(tokens: int, width: int) -> int:  # four projections' worth, a fourfold MLP, two products of attention
        return 2 * tokens * width * (4 + 8) * width + 2 * 2 * tokens**2 * width

    patches, seen, pixels = 16, 2 + 4, 8 * 8 * 3
    embedding = 2 * (seen - 2) * pixels * 16  # of what is seen
    forward = block(seen, 16) + 2 * seen * 16 * 8 + block(2 + patches, 8) + 2 * patches * 8 * pixels
    expected = 3 * forward + 2 * embedding  # backward costs twice forward; pixels take no gradient
    assert count_flops(model, batch) == expected
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_utilisation_is_the_rate_as_a_share_of_the_ceiling() -> None:
    meter = Meter(batch_size=8, flops=5.0, ceiling=1e6)
    with meter.timing():
        pass
    read = meter.read()
    assert read["utilisation"] == pytest.approx(read["images_per_s"] * 5.0 / 1e6, rel=0.01, abs=1e-4)


def test_the_ceiling_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules["pixio_pretrain.speed"].__dict__["SIDES"], "cpu", 128)
    assert 1e7 < matmul_ceiling(torch.device("cpu"), torch.float32) < 1e16
