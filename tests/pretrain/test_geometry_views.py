import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from pixio_pretrain.geometry.cli import train_views
from pixio_pretrain.geometry.drift import DriftTask, knocks
from pixio_pretrain.geometry.fitting import FitConfig, fit
from pixio_pretrain.geometry.pairs import evaluate_scenes, measure_views, partners
from pixio_pretrain.geometry.sets import RgbdSet
from pixio_pretrain.geometry.views import ViewsTask
from pixio_robot import Encoder, create_encoder, load_encoder
from pixio_robot.errors import CheckpointError, DataError, SettingError
from pixio_robot.geometry.cameras import check_poses
from pixio_robot.geometry.depth import DepthModel, DepthSettings, load_depth
from pixio_robot.geometry.multiview import MultiViewModel, load_multiview
from pixio_robot.geometry.trunk import MultiViewSettings

SIDE, VIEWS, SCENES = 32, 3, 8
TRUNK = MultiViewSettings(width=24, heads=2, bins=6)


def write_set(folder: Path, seed: int, *, views: int = VIEWS) -> None:
    """Cameras look down on a table of coloured stripes, both ways, from different heights and places."""
    random = np.random.default_rng(seed)
    k = np.tile(np.array([[30.0, 0, SIDE / 2], [0, 30, SIDE / 2], [0, 0, 1]]), (SCENES, views, 1, 1))
    poses = np.tile(np.diag([1.0, -1, -1, 1]), (SCENES, views, 1, 1))
    poses[..., :3, 3] = random.uniform((-0.2, -0.2, 0.6), (0.2, 0.2, 1.2), size=(SCENES, views, 3))
    depth = np.broadcast_to(poses[..., 2, 3, None, None], (SCENES, views, SIDE, SIDE)).astype(np.float32)
    steps = (np.arange(SIDE) + 0.5 - SIDE / 2) / 30
    x, y = steps * depth + poses[..., 0, 3, None, None], poses[..., 1, 3, None, None] - steps[:, None] * depth
    color = (127 + 120 * np.sin(np.stack([25 * x, 20 * y, 4 * (x + y)], axis=-1))).astype(np.uint8)
    group = zarr.create_group(folder, attributes={"tasks": ["table"], "complete": True})
    group.require_group("bodies/table").attrs.update({"names": ["world"], "parts": ["scenery"]})
    arrays = {"color": color, "depth": depth, "body": np.zeros(depth.shape, np.int16)}
    arrays |= {"intrinsics": k, "cam2world": poses, "scene": np.arange(SCENES, dtype=np.int32)}
    for name, values in (arrays | {"task": np.zeros(SCENES, np.int16)}).items():
        group.create_array(name, data=values)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rgbd")
    for seed, name in enumerate(("train", "held_out/seen")):
        write_set(folder / name, seed)
    return folder


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return create_encoder("pixio_vitt16", seed=0, width=24, depth=2, heads=2, image_size=32, patch_size=8)


def make(encoder: Encoder, *, detail: bool = False, alone: DepthModel | None = None) -> MultiViewModel:
    torch.manual_seed(0)
    return MultiViewModel(encoder, replace(TRUNK, detail=detail), depth_head=alone)


def on(model: MultiViewModel) -> Callable[[RgbdSet], ViewsTask]:
    return lambda frames: ViewsTask(model, frames)


def test_partners_are_other_views_of_the_same_moment(data: Path) -> None:
    frames = RgbdSet.read(data / "train")
    assert partners(frames, np.array([0, 4, 5])).tolist() == [[0, 1], [4, 5], [5, 3]]


def test_what_is_given_takes_no_loss_and_every_mode_is_met(data: Path, encoder: Encoder) -> None:
    task = ViewsTask(make(encoder), RgbdSet.read(data / "train"))
    met: dict[frozenset[str], int] = {}
    for seed in range(16):
        parts = task.loss(np.arange(2), torch.Generator().manual_seed(seed))
        assert parts["loss"].isfinite()
        key = frozenset(parts) & {"focal", "rotation", "translation"}
        met[key] = met.get(key, 0) + 1
    assert set(met) == {
        frozenset(), frozenset({"rotation", "translation"}), frozenset({"focal", "rotation", "translation"})
    }  # fmt: skip
    assert met[frozenset()] > 5


def test_a_twin_sees_another_scene_and_is_always_told_where_cameras_are(data: Path, encoder: Encoder) -> None:
    frames = RgbdSet.read(data / "train")
    task, twin = (ViewsTask(make(encoder), frames, twin=twin) for twin in (False, True))
    pairs = partners(frames, np.arange(len(frames)))
    assert (task._shown(pairs) == pairs).all()
    shown = twin._shown(pairs)
    assert (shown[:, 0] == pairs[:, 0]).all()
    assert (shown[:, 1] % VIEWS == pairs[:, 1] % VIEWS).all()
    assert (frames.scenes(shown[:, 1]) != frames.scenes(pairs[:, 1])).all()
    for seed in range(12):
        assert "rotation" not in twin.loss(np.arange(2), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("alone", [False, True])
def test_half_precision_leaves_poses_as_they_are(data: Path, encoder: Encoder, alone: bool) -> None:
    """A pose in bfloat16 is no rotation any more, and its points are off by centimetres."""
    model = make(encoder, detail=True, alone=DepthModel(encoder) if alone else None)
    task, met = ViewsTask(model, RgbdSet.read(data / "train")), set()
    for seed in range(16):
        exact = task.loss(np.arange(4), torch.Generator().manual_seed(seed))
        with torch.autocast("cpu", torch.bfloat16):
            rounded = task.loss(np.arange(4), torch.Generator().manual_seed(seed))
        met.add(frozenset(exact))
        assert rounded["loss"].item() == pytest.approx(exact["loss"].item(), rel=0.05)
    assert len(met) == 3
    poses = task.truth(np.array([[0, 1]]), "nothing")[2]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(task.truth(np.array([[0, 1]]), "nothing")[2], poses)


@pytest.mark.parametrize("detail", [False, True])
def test_the_same_chance_gives_the_same_loss(data: Path, encoder: Encoder, detail: bool) -> None:
    task = ViewsTask(make(encoder, detail=detail), RgbdSet.read(data / "train"))
    first, again, other = (
        task.loss(np.arange(4), torch.Generator().manual_seed(seed))["loss"].item() for seed in (1, 1, 2)
    )
    assert first == again != other


def test_a_model_that_knows_the_answer_scores_perfectly(data: Path, encoder: Encoder) -> None:
    frames, model = (
        RgbdSet.read(data / "train"),
        MultiViewModel(encoder, MultiViewSettings(width=24, heads=2, bins=6, support_heights=(0.0,))),
    )
    torch.nn.init.zeros_(model.trunk.dense.out.weight)
    bias = model.trunk.dense.out.bias
    assert bias is not None
    bias.data = torch.tensor([0.0, 0, 0, 40])  # depth, mask, confidence, and how surely it is the table
    rows = np.arange(len(frames))
    torch.testing.assert_close(measure_views(on(model), "all")(frames, rows), frames.depths(rows))
    told, untold = _values(evaluate_scenes({"train": frames}, on(model), ("all", "nothing")))
    assert told["points_rel"] == pytest.approx(0, abs=1e-5)
    assert told["pose_auc5"] == 100
    assert told["translation_cm"] == pytest.approx(0, abs=1e-3)
    assert untold["points_rel"] > 0.01
    assert untold["translation_cm"] > 1


def test_drift_is_measured_beside_assuming_none(data: Path, encoder: Encoder) -> None:
    model = make(encoder, alone=DepthModel(encoder))
    assumed, found = _values(evaluate_scenes({"train": RgbdSet.read(data / "train")}, on(model), ["drifted"]))
    assert 1 < assumed["rotation_deg"] < model.settings.drift[0]
    assert 1 < assumed["translation_cm"] < 100 * model.settings.drift[1]
    assert found["rotation_deg"] == pytest.approx(assumed["rotation_deg"], abs=0.5)  # nothing was learnt of it
    assert len(evaluate_scenes({"train": RgbdSet.read(data / "train")}, on(model))) == 5
    assert len(evaluate_scenes({"train": RgbdSet.read(data / "train")}, on(make(encoder)))) == 3


def _values(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    assert {row["scenes"] for row in rows} == {SCENES}
    return [{name: metric["value"] for name, metric in row["metrics"].items()} for row in rows]


def test_a_landmarks_true_place_shows_the_same_spot(data: Path, encoder: Encoder) -> None:
    frames = RgbdSet.read(data / "train")
    task = DriftTask(make(encoder, alone=DepthModel(encoder)), frames)
    pairs = np.arange(SCENES)[:, None] * VIEWS + [0, 1]
    poses = frames.calibration(pairs.ravel())[1].unflatten(0, pairs.shape)
    at, counts = task._truth(pairs[:, 0], poses, (4, 4))
    assert counts.all()
    middles = torch.arange(4, SIDE, 8) + 0.5
    here = torch.stack(torch.meshgrid(middles, middles, indexing="xy"), dim=-1).flatten(0, 1)
    x, y = ((here - SIDE / 2) / 30 * poses[:, 0, 2, 3, None, None]).unbind(-1)  # the cameras look straight down
    x, y = x + poses[:, 0, 0, 3, None], y - poses[:, 0, 1, 3, None]
    there = torch.stack([x - poses[:, 1, 0, 3, None], y + poses[:, 1, 1, 3, None]], dim=-1)
    torch.testing.assert_close(at, there / poses[:, 1, 2, 3, None, None], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_drift_is_found(data: Path, encoder: Encoder, tmp_path: Path) -> None:
    """With depth that is right, in pictures that can be matched: most of it is gone on scenes never trained on."""
    head = DepthModel(encoder, DepthSettings(coding="support", support_heights=(0.0,)))
    torch.nn.init.zeros_(head.head.out.weight)
    bias = head.head.out.bias
    assert bias is not None
    bias.data = torch.tensor([0.0, 0, 40])  # surely table
    model = make(encoder, alone=head)
    config = FitConfig(steps=300, batch_size=8, lr=2e-3, precision="fp32", checkpoint_every=300)
    fit(DriftTask(model, RgbdSet.read(data / "train")), config, tmp_path, identity={})
    held_out = {"seen": RgbdSet.read(data / "held_out" / "seen")}
    assumed, found = _values(evaluate_scenes(held_out, on(model), ["drifted"]))
    assert found["rotation_deg"] < 0.75 * assumed["rotation_deg"]
    assert found["pose_auc30"] > assumed["pose_auc30"] + 2


def test_drift_without_a_depth_head_cannot_be_trained(data: Path, encoder: Encoder) -> None:
    with pytest.raises(SettingError, match="give the model a depth head"):
        DriftTask(make(encoder), RgbdSet.read(data / "train"))


def test_knocks_are_rigid_and_of_the_size_that_is_said() -> None:
    drift = knocks(500, torch.Generator().manual_seed(0), 15.0, 0.05)
    check_poses(drift)
    angles = torch.rad2deg(torch.acos((drift[:, :3, :3].diagonal(dim1=1, dim2=2).sum(dim=1) - 1) / 2))
    lengths = drift[:, :3, 3].norm(dim=1)
    for values, most in ((angles, 15.0), (lengths, 0.05)):
        assert values.max() <= most * 1.001
        assert values.mean() == pytest.approx(most / 2, rel=0.1)


@pytest.mark.slow
def test_two_views_improve_on_a_depth_head_that_is_wrong(data: Path, encoder: Encoder, tmp_path: Path) -> None:
    """Its error is in the scale, which parallax gives away; and the run knows that it began with this very head."""
    encoder.save_pretrained(tmp_path / "encoder")
    name = str(tmp_path / "encoder")
    torch.manual_seed(0)
    head = DepthModel(load_encoder(name))
    torch.nn.init.normal_(head.head.out.weight, std=1e-3)
    for folder, start in (("wrong", 1.2), ("other", 0.9)):
        head.start_at(start, focal=30)
        head.save_pretrained(tmp_path / folder)
    config = FitConfig(steps=80, batch_size=8, lr=3e-3, precision="fp32", checkpoint_every=40)
    common: dict[str, Any] = {"encoder_name": name, "settings": TRUNK, "config": config, "drift_steps": 3}
    model = load_multiview(train_views(data, tmp_path / "run", depth=tmp_path / "wrong", twin=True, **common))
    assert model.depth_head is not None
    mine, its = model.depth_head.head.state_dict(), load_depth(tmp_path / "wrong").head.state_dict()
    assert all(torch.equal(mine[name], its[name]) for name in its)
    rows = json.loads((tmp_path / "run" / "evaluation.json").read_text())["rows"]
    errors = {row["method"]: row["metrics"]["abs_rel"]["value"] for row in rows if "abs_rel" in row["metrics"]}
    assert errors["two views and calibration"] < 0.8 * errors["one view and calibration"]
    assert model.facts["drift"]["steps"] == 3
    assert errors["a view of another scene beside it"] < 0.8 * errors["one view and calibration"]
    shutil.rmtree(tmp_path / "run" / "model")  # a run that is done gives its model and tables again
    before = (tmp_path / "run" / "evaluation.md").read_text()
    train_views(data, tmp_path / "run", depth=tmp_path / "wrong", twin=True, **common)
    assert (tmp_path / "run" / "model" / "config.json").is_file()
    assert (tmp_path / "run" / "evaluation.md").read_text().splitlines()[4:] == before.splitlines()[4:]
    text = (tmp_path / "run" / "evaluation.md").read_text()
    assert text.count("| two views, drift corrected less |") == text.count("| poses before the drift |") // 2 == 1
    with pytest.raises(CheckpointError, match=r"alone_sha256"):
        train_views(data, tmp_path / "run", depth=tmp_path / "other", **common)


def test_settings_of_a_depth_head_without_its_weights_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="name its folder"):
        train_views(data, tmp_path, settings=replace(TRUNK, alone=DepthSettings()))


@pytest.mark.slow
def test_a_trunk_is_trained_stored_and_compared(data: Path, encoder: Encoder, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path / "encoder")
    config = FitConfig(steps=60, batch_size=8, lr=3e-3, precision="fp32", checkpoint_every=30, log_every=5)
    folder = train_views(data, tmp_path / "run", encoder_name=str(tmp_path / "encoder"), settings=TRUNK, config=config)
    assert load_multiview(folder).facts["fit"]["steps"] == 60
    log = [json.loads(line) for line in (tmp_path / "run" / "trunk" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["silog"] < log[0]["silog"]
    rows = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    found = {row["method"]: row["metrics"]["abs_rel"]["value"] for row in rows["rows"] if "abs_rel" in row["metrics"]}
    assert found["two views and calibration"] < 0.15
    assert "drift" not in (tmp_path / "run" / "evaluation.md").read_text()


def test_a_set_of_one_view_is_refused(encoder: Encoder, tmp_path: Path) -> None:
    write_set(tmp_path / "one", 0, views=1)
    with pytest.raises(DataError, match="render at least two"):
        ViewsTask(make(encoder), RgbdSet.read(tmp_path / "one"))
