import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from torch import Tensor, nn

from pixio_pretrain.checkpoint import checkpoints
from pixio_pretrain.geometry import fitting
from pixio_pretrain.geometry.baselines import PixelMean, table_plane
from pixio_pretrain.geometry.cli import main, train_depth
from pixio_pretrain.geometry.evaluation import evaluate, frame_errors, to_markdown
from pixio_pretrain.geometry.fitting import FitConfig, batch_of, fit
from pixio_pretrain.geometry.losses import beyond, confidence_loss, gradient_matching, log_warp, robust, silog
from pixio_pretrain.geometry.sets import RgbdSet, Rows
from pixio_pretrain.geometry.taps import Taps
from pixio_robot import create_encoder
from pixio_robot.errors import CheckpointError, DataError, SettingError
from pixio_robot.geometry.cameras import plane_depth
from pixio_robot.geometry.depth import DepthSettings, load_depth

SIDE, VIEWS, SCENES, MOMENTS = 32, 2, 12, 2
FIT = FitConfig(steps=12, batch_size=8, lr=3e-3, precision="fp32", checkpoint_every=4, log_every=4)


def write_set(folder: Path, seed: int) -> None:
    """Cameras look down on a table with a box on it; the higher something is, the brighter."""
    random, rows = np.random.default_rng(seed), SCENES * MOMENTS
    heights = random.uniform(0.5, 1.5, size=(rows, VIEWS))
    k = np.tile(np.array([[30.0, 0, SIDE / 2], [0, 30, SIDE / 2], [0, 0, 1]]), (rows, VIEWS, 1, 1))
    poses = np.tile(np.diag([1.0, -1, -1, 1]), (rows, VIEWS, 1, 1))
    poses[..., 2, 3] = heights
    depth = np.broadcast_to(heights[..., None, None], (rows, VIEWS, SIDE, SIDE)).copy()
    body = np.zeros(depth.shape, np.int16)
    for row in range(rows):
        top, left = random.integers(0, SIDE - 12, size=2)
        depth[row, :, top : top + 12, left : left + 12] -= 0.3
        body[row, :, top : top + 12, left : left + 12] = 1
    color = np.repeat((255 * (1.6 - depth) / 1.6)[..., None], 3, axis=-1).astype(np.uint8)
    group = zarr.create_group(folder, attributes={"tasks": ["box"], "size": [SIDE, SIDE], "complete": True})
    group.require_group("bodies/box").attrs.update({"names": ["world", "box"], "parts": ["scenery", "object"]})
    arrays = {"color": color, "depth": depth.astype(np.float32), "body": body, "intrinsics": k, "cam2world": poses}
    arrays |= {"scene": np.repeat(np.arange(SCENES), MOMENTS).astype(np.int32), "task": np.zeros(rows, np.int16)}
    for name, values in arrays.items():
        group.create_array(name, data=values)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rgbd")
    for seed, name in enumerate(("train", "held_out/seen", "held_out/all")):
        write_set(folder / name, seed)
    return folder


@pytest.fixture(scope="module")
def encoder_name(tmp_path_factory: pytest.TempPathFactory) -> str:
    encoder = create_encoder("pixio_vitt16", seed=0, width=24, depth=4, heads=2, image_size=32, patch_size=8)
    with torch.no_grad():  # fresh weights hardly tell images apart
        for parameter in encoder.backbone.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    folder = tmp_path_factory.mktemp("encoder")
    encoder.save_pretrained(folder)
    return str(folder)


def test_a_set_of_ones_own_needs_no_bodies(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "held_out" / "seen", tmp_path / "mine")
    own = RgbdSet.read(tmp_path / "mine")
    known = frame_errors(own, table_plane)
    for name in ("body", "bodies"):
        shutil.rmtree(tmp_path / "mine" / name)
    found = frame_errors(RgbdSet.read(tmp_path / "mine"), table_plane)
    assert {name for name in known if "object" in name}
    assert found.keys() == {name for name in known if "object" not in name}
    for name, values in found.items():
        np.testing.assert_array_equal(values, known[name])


def test_losses_of_the_truth_are_nothing_and_a_factor_costs_half_its_logarithm() -> None:
    truth = 1 + torch.rand(2, 16, 16)
    valid = torch.ones_like(truth, dtype=torch.bool)
    assert silog(truth, truth, valid) < 1e-4
    assert gradient_matching(truth, truth, valid) == 0
    factor = torch.tensor(1.2)
    torch.testing.assert_close(silog(factor * truth, truth, valid), factor.log() * 0.5**0.5)
    torch.testing.assert_close(gradient_matching(factor * truth, truth, valid), torch.tensor(0.0), atol=1e-6, rtol=0)


def test_an_edge_in_the_wrong_place_costs_gradients_and_unknown_pixels_cost_nothing() -> None:
    truth = torch.ones(1, 8, 8)
    shifted = truth.clone()
    shifted[..., 4:] = 2
    assert gradient_matching(shifted, truth, truth > 0) > 0.05
    valid = torch.arange(8).expand(1, 8, 8) < 4
    assert gradient_matching(shifted, truth, valid) == 0
    assert silog(shifted, truth, valid) < 1e-4


def test_the_sky_may_be_anywhere_but_near() -> None:
    truth = torch.tensor([[[100.0, 100, 1, 1]]])
    assert beyond(torch.tensor([[[4.0, 50, 0.1, 9]]]), truth, farthest=4) == 0
    near = beyond(torch.tensor([[[1.0, 4, 0.1, 9]]]), truth, farthest=4)
    torch.testing.assert_close(near, torch.tensor(4.0).log() / 2)
    assert beyond(truth, torch.ones_like(truth), farthest=4) == 0


def test_confidence_finds_its_optimum_at_a_fifth_of_the_inverse_error() -> None:
    error = torch.full((1, 2, 2), 0.05, requires_grad=True)
    confidence = torch.full((1, 2, 2), 2.0, requires_grad=True)
    optimizer = torch.optim.Adam([confidence], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        confidence_loss(confidence, error, torch.ones(1, 2, 2, dtype=torch.bool)).backward()
        optimizer.step()
    torch.testing.assert_close(confidence.detach(), torch.full((1, 2, 2), 4.0), atol=0.02, rtol=0)
    assert error.grad is None


def test_one_pixel_that_is_sure_and_wrong_does_not_decide_on_a_step() -> None:
    number = torch.tensor([[[12.0, 0.5]]], requires_grad=True)  # as a head says it: a confidence of 160 000
    confidence_loss(1 + number.exp(), torch.full((1, 1, 2), 0.5), torch.ones(1, 1, 2, dtype=torch.bool)).backward()
    assert number.grad is not None
    assert 0 < number.grad.abs().max() <= 0.5
    assert number.grad.max() < 3 * number.grad.min()


def test_the_robust_loss_is_a_parabola_near_nothing_and_a_root_far_away() -> None:
    assert robust(torch.tensor(1e-3)) == pytest.approx(0.5 * (1e-3 / 0.05) ** 2, rel=1e-3)
    assert robust(torch.tensor(400.0)) / robust(torch.tensor(100.0)) == pytest.approx(2, rel=0.05)
    points = torch.tensor([[0.0, 3, 4]])
    torch.testing.assert_close(log_warp(points), points / 5 * torch.tensor(6.0).log())


def test_every_pass_sees_every_sample_once() -> None:
    seen = np.concatenate([batch_of(step, samples=10, size=4, seed=3) for step in range(5)])
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()


def test_kept_tokens_are_those_that_the_encoder_gives(data: Path, encoder_name: str) -> None:
    from pixio_robot import load_encoder

    encoder, frames = load_encoder(encoder_name), RgbdSet.read(data / "train")
    rows = np.array([3, 40, 7])
    kept, live = Taps(encoder, frames, [1, 3]), Taps(encoder, frames, [1, 3], gigabytes=0)
    assert kept.kept
    assert not live.kept
    for one, other in zip(kept(rows), live(rows), strict=True):
        assert one.grid == other.grid
        torch.testing.assert_close(one.patches, other.patches, atol=5e-3, rtol=5e-3)
        torch.testing.assert_close(one.classes, other.classes, atol=5e-3, rtol=5e-3)


def test_baselines_know_what_they_are_told_and_no_more(data: Path) -> None:
    frames = RgbdSet.read(data / "train")
    rows = np.arange(len(frames))
    mean = PixelMean.fit(frames)
    logs = np.log(frames.depth)
    assert mean.overall == pytest.approx(np.exp(logs.mean()), rel=1e-4)
    np.testing.assert_allclose(mean.pixels(frames, rows[:1])[0], np.exp(logs.mean(axis=(0, 1))), rtol=1e-4)
    k, poses = frames.calibration(rows)
    torch.testing.assert_close(table_plane(frames, rows), plane_depth(k, poses, (SIDE, SIDE)))
    table = evaluate({"train": frames}, {"plane": table_plane, "truth": lambda them, these: them.depths(these)})
    plane, truth = (row["metrics"] for row in table)
    assert truth["median_cm"]["value"] < 1e-4
    assert truth["delta1.03"]["value"] == 1
    assert plane["median_cm"]["value"] < 1e-3  # most is table
    assert plane["object_median_cm"]["value"] > 25  # but the box stands 30 cm high
    assert plane["delta1"]["low"] <= plane["delta1"]["value"] <= plane["delta1"]["high"]


@pytest.mark.slow
@pytest.mark.parametrize(("head", "lr"), [("linear", 5e-3), ("tiny", 1e-3)])
def test_a_head_learns_what_no_baseline_knows(
    data: Path, encoder_name: str, tmp_path: Path, head: str, lr: float
) -> None:
    config = FitConfig(steps=60, batch_size=16, lr=lr, precision="fp32", log_every=10)
    folder = train_depth(
        data, tmp_path, encoder_name=encoder_name, settings=DepthSettings(head=head), config=config, twin=False
    )
    rows = json.loads((tmp_path / "evaluation.json").read_text())["rows"]
    found = {row["method"]: row["metrics"]["abs_rel"]["value"] for row in rows if row["set"] == "all"}
    learnt = found.pop(f"{head} on {encoder_name}")
    assert learnt < 0.6 * min(found["constant"], found["pixel mean"])
    assert {"table plane", "constant", "pixel mean"} == set(found)
    assert load_depth(folder).facts["fit"]["steps"] == 60
    assert "table plane" in (tmp_path / "evaluation.md").read_text()


def test_a_killed_run_ends_like_one_that_was_not(
    data: Path, encoder_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"encoder_name": encoder_name, "settings": DepthSettings(head="linear", rays=True), "config": FIT}
    train_depth(data, tmp_path / "whole", **settings, twin=False)
    step = fitting._step

    def killed(*arguments: Any) -> Any:
        if arguments[-1] == 9:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(fitting, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        train_depth(data, tmp_path / "again", **settings, twin=False)
    assert not (tmp_path / "again" / "model").exists()
    monkeypatch.setattr(fitting, "_step", step)
    train_depth(data, tmp_path / "again", **settings, twin=False)
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "again")]
    assert weights[0] == weights[1]
    tables = [(tmp_path / name / "evaluation.md").read_text() for name in ("whole", "again")]
    assert tables[0] == tables[1]
    assert "pose withheld" in tables[0]
    with pytest.raises(CheckpointError, match=r"head\.head \(there 'linear', now 'tiny'\), head\.rays"):
        train_depth(data, tmp_path / "again", **(settings | {"settings": DepthSettings(head="tiny")}), twin=False)


class Slope:
    """A line to be learnt; at one of its steps it may be asked to stop."""

    samples = 8

    def __init__(self, *, stopped_at: int | None = None) -> None:
        torch.manual_seed(0)
        self.module: nn.Module = nn.Linear(1, 1)
        self.left = stopped_at

    def loss(self, rows: Rows, random: torch.Generator) -> dict[str, Tensor]:
        if self.left is not None:
            self.left -= 1
            if not self.left:
                os.kill(os.getpid(), signal.SIGTERM)
        x = torch.from_numpy(rows).float()[:, None]
        return {"loss": (self.module(x) - 3 * x + torch.rand(1, generator=random)).square().mean()}


def test_a_fit_saves_itself_on_sigterm_and_goes_on_with_other_checkpoints(tmp_path: Path) -> None:
    whole, stopped, resumed = Slope(), Slope(stopped_at=3), Slope()
    fit(whole, FIT, tmp_path / "whole", identity={})
    with pytest.raises(SystemExit) as stop:
        fit(stopped, FIT, tmp_path / "stopped", identity={})
    assert stop.value.code == 143
    assert [place.name for place in checkpoints(tmp_path / "stopped" / "checkpoints")] == ["step-00000003"]
    fit(resumed, dataclasses.replace(FIT, checkpoint_every=5), tmp_path / "stopped", identity={})
    for one, other in zip(whole.module.parameters(), resumed.module.parameters(), strict=True):
        assert torch.equal(one, other)


class Cliff(Slope):
    """A loss that is finite where its gradient is not."""

    def loss(self, rows: Rows, random: torch.Generator) -> dict[str, Tensor]:
        return {"loss": super().loss(rows, random)["loss"] + (0 * next(self.module.parameters())).sum().sqrt()}


def test_a_gradient_that_is_not_finite_stops_a_fit_before_it_gets_into_the_weights(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"gradient's norm nan at step 1\. Try a smaller lr"):
        fit(cliff := Cliff(), FIT, tmp_path, identity={})
    assert all(parameter.isfinite().all() for parameter in cliff.module.parameters())
    assert not checkpoints(tmp_path / "checkpoints")


def change(folder: Path, edit: Callable[[Any], None]) -> Path:
    write_set(folder, 0)
    edit(zarr.open_group(folder, mode="r+"))
    return folder


def test_sets_that_cannot_be_used_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no zarr group"):
        RgbdSet.read(tmp_path / "nowhere")
    with pytest.raises(DataError, match="unfinished"):
        RgbdSet.read(change(tmp_path / "a", lambda group: group.attrs.update(complete=False)))
    with pytest.raises(DataError, match="lacks the arrays depth"):
        RgbdSet.read(change(tmp_path / "b", lambda group: group.__delitem__("depth")))
    with pytest.raises(SystemExit, match=r"pixio-geometry: .*scripts/render_rgbd.py"):
        main(["depth", str(tmp_path), str(tmp_path / "out")])


def test_the_table_names_every_method_in_every_set_and_tells_them_apart_scene_by_scene() -> None:
    metric = {"value": 0.5, "low": 0.4, "high": 0.6}
    shared = {"scenes": 3, "metrics": {"delta1": metric}}
    values = {"m": [0.1, 0.5, None, 0.9], "n": [0.3, 0.7, 0.2, 1.1]}  # n is always 0.2 better, where both are known
    rows = [
        {"set": name, "method": method, "values": {"delta1": values[method]}, **shared}
        for name in ("a", "b")
        for method in ("m", "n")
    ]
    text = to_markdown(rows)
    assert text.count("| m | 0.5 [0.4, 0.6] |") == 2
    assert text.count("| n less | delta1 |") == 2
    assert text.count("| m | 0.2 [0.2, 0.2] |") == 2
