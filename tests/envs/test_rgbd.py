from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from lerobot_env_pixio import rgbd, scene_sets
from lerobot_env_pixio.rgbd import render_rgbd
from lerobot_env_pixio.rgbd_stage import ASPECTS, PARTS, Stage
from pixio_robot.errors import DataError, SettingError, UnknownNameError

pytestmark = pytest.mark.slow  # textures of half a megapixel are painted for every scene

SETTINGS: dict[str, Any] = {"tasks": ["drawer-open"], "scenes_per_task": 2, "moments": 2, "size": (48, 64)}


def here(function: Callable[[Any], Any], jobs: list[Any], *, workers: int) -> Iterator[Any]:
    """Stand in for `run_jobs` without processes."""
    return map(function, jobs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render_rgbd(tmp_path_factory.mktemp("rgbd") / "set", workers=1, **SETTINGS)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    made = Stage("metaworld", "drawer-open-v3", cameras=("corner2",), free=2, size=(48, 64), render="fast")
    yield made
    made.close()


def world_points(group: Any, row: int, view: int) -> np.ndarray:
    """What one view sees, as points in the world [h w 3]."""
    depth = group["depth"][row, view].astype(np.float64)
    v, u = np.indices(depth.shape) + 0.5
    rays = np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(group["intrinsics"][row, view]).T
    pose = group["cam2world"][row, view]
    return (rays * depth[..., None]) @ pose[:3, :3].T + pose[:3, 3]


def test_every_view_agrees_with_every_other_on_where_things_are(folder: Path) -> None:
    group: Any = zarr.open_group(folder, mode="r")
    for row in range(4):
        for view, other in ((1, 0), (2, 1)):
            near = group["depth"][row, view] < 3
            points = world_points(group, row, view)[near]
            pose, k = group["cam2world"][row, other], group["intrinsics"][row, other]
            camera = (points - pose[:3, 3]) @ pose[:3, :3]
            pixels = np.floor((camera @ k.T)[:, :2] / camera[:, 2:]).astype(int)
            inside = (camera[:, 2] > 0) & (pixels >= 0).all(axis=1) & (pixels < (64, 48)).all(axis=1)
            seen = group["depth"][row, other][pixels[inside, 1], pixels[inside, 0]]
            error = (camera[inside, 2] - seen) / seen
            assert inside.sum() > 200
            assert (error > -0.03).mean() > 0.9  # nothing floats before what the other sees; behind it, much is hidden
            assert (np.abs(error) < 0.03).mean() > 0.4


def test_bodies_have_names_and_parts(folder: Path) -> None:
    group: Any = zarr.open_group(folder, mode="r")
    facts = group["bodies/drawer-open-v3"].attrs
    assert set(facts["parts"]) == set(PARTS)
    assert dict(zip(facts["names"], facts["parts"], strict=True))["leftclaw"] == "gripper"
    bodies = group["body"][:]
    assert bodies.min() >= -1
    assert bodies.max() < len(facts["names"])
    parts = np.array(facts["parts"])[np.maximum(bodies, 0)]
    for part in PARTS:
        assert ((parts == part) & (bodies >= 0)).any()
    table = world_points(group, 0, 0)[parts[0, 0] == "object"]
    assert np.median(table[:, 2]) > 0.02  # the drawer stands on the table, whose top is at height 0


def test_a_killed_run_is_finished_to_the_same_set(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed_in_the_second_scene(*arguments: Any) -> dict[str, np.ndarray]:
        if (tmp_path / "set" / "scene" / "c" / "0").exists():
            raise KeyboardInterrupt
        return render(*arguments)

    render = rgbd._render_scene
    monkeypatch.setattr(scene_sets, "run_jobs", here)
    monkeypatch.setattr(rgbd, "_render_scene", killed_in_the_second_scene)
    with pytest.raises(KeyboardInterrupt):
        render_rgbd(tmp_path / "set", **SETTINGS)
    begun: Any = zarr.open_group(tmp_path / "set", mode="r")
    assert not begun.attrs["complete"]
    assert begun["scene"][:].tolist() == [0, 0, -1, -1]

    monkeypatch.setattr(rgbd, "_render_scene", render)
    render_rgbd(tmp_path / "set", **SETTINGS)
    whole: Any = zarr.open_group(folder, mode="r")
    again: Any = zarr.open_group(tmp_path / "set", mode="r")
    for name in ("color", "depth", "body", "intrinsics", "cam2world", "task", "scene"):
        np.testing.assert_array_equal(again[name][:], whole[name][:])


def test_other_settings_and_mistakes_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"held_out: \[\] there, \['lights'\] wanted"):
        render_rgbd(folder, **SETTINGS, held_out=("lights",))
    with pytest.raises(UnknownNameError, match="'lights'"):
        render_rgbd(tmp_path / "a", **SETTINGS, held_out=("light",))
    with pytest.raises(SettingError, match=r"0 to 3 free cameras"):
        render_rgbd(tmp_path / "a", **SETTINGS, free=4)
    with pytest.raises(SettingError, match="no scripted expert"):
        render_rgbd(tmp_path / "a", suite="adroit", tasks=["door"])
    with pytest.raises(SettingError, match=r"moments=9: .* at most 500 steps, .* up to 531\. 8 moments always fit"):
        render_rgbd(tmp_path / "a", **SETTINGS | {"moments": 9})
    with pytest.raises(SettingError, match=r"Tasks, .* at least 1"):
        render_rgbd(tmp_path / "a", **SETTINGS | {"tasks": []})
    assert not (tmp_path / "a").exists()


def test_another_suite_is_looked_at_through_a_camera_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scene_sets, "run_jobs", here)
    settings: dict[str, Any] = {"tasks": ["insertion"], "scenes_per_task": 1, "moments": 1, "size": (24, 32)}
    group: Any = zarr.open_group(render_rgbd(tmp_path / "set", suite="aloha", **settings), mode="r")
    assert group.attrs["cameras"] == ["top"]
    assert group["color"].shape == (1, 3, 24, 32, 3)


def looks(stage: Stage, seed: int) -> dict[str, Any]:
    stage.reset(seed)
    model = stage.simulation.model
    return {
        "scenes": [thing.position.tolist() for thing in stage.cameras.distractors],
        "textures": (model.mat_rgba.tolist(), model.geom_rgba.tolist(), model.tex_data[:50_000].tolist()),
        "lights": (model.light_diffuse.tolist(), model.light_pos.tolist(), model.vis.headlight.diffuse.tolist()),
        "cameras": (model.cam_pos.tolist(), model.cam_quat.tolist(), model.cam_fovy.tolist()),
    }


def test_a_scene_follows_its_seed_whatever_went_before(stage: Stage) -> None:
    first = looks(stage, 2_000_000)
    second = looks(stage, 2_000_001)
    assert all(first[aspect] != second[aspect] for aspect in ASPECTS)
    assert looks(stage, 2_000_000) == first


@pytest.mark.parametrize("aspect", ASPECTS)
def test_an_aspect_that_is_held_out_changes_and_no_other_does(stage: Stage, aspect: str) -> None:
    settings: dict[str, Any] = {"cameras": ("corner2",), "free": 2, "size": (48, 64), "render": "fast"}
    other = Stage("metaworld", "drawer-open-v3", **settings, held_out=(aspect,))
    trained, held_out = looks(stage, 2_000_000), looks(other, 2_000_000)
    other.close()
    assert [name for name in ASPECTS if trained[name] != held_out[name]] == [aspect]


def test_free_cameras_stand_upright_around_the_table(stage: Stage) -> None:
    for seed in range(2_000_000, 2_000_006):
        stage.reset(seed)
        for name in stage.cameras.names[1:]:
            pose = stage.cameras.cam2world(name)
            assert 0.6 < np.linalg.norm(pose[:3, 3] - (0, 0.6, 0.1)) < 1.6
            assert abs(pose[2, 0]) < 1e-6  # the image's rows are level
            assert pose[2, 1] < 0  # and its lower edge is down
            towards = np.array([0, 0.6, 0.1]) - pose[:3, 3]
            assert towards @ pose[:3, 2] > 0.95 * np.linalg.norm(towards)
