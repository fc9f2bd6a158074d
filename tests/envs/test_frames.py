from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from lerobot_env_pixio import frames, render_frames, scene_sets
from lerobot_env_pixio.truth import depth_size
from pixio_robot.errors import DataError, SettingError, UnknownNameError

SETTINGS: dict[str, Any] = {
    "tasks": ["reach", "drawer-open"],
    "episodes_per_task": 2,
    "frames_per_episode": 3,
    "size": (16, 24),
}


def here(function: Callable[[Any], Any], jobs: list[Any], *, workers: int) -> Iterator[Any]:
    """Stand in for `run_jobs` without processes."""
    return map(function, jobs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render_frames(tmp_path_factory.mktemp("frames") / "set", workers=1, **SETTINGS)


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A set with the exact answers, of one task and larger pictures."""
    folder = tmp_path_factory.mktemp("frames") / "answered"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scene_sets, "run_jobs", here)
        render_frames(folder, truth=True, **(SETTINGS | {"tasks": ["reach"], "size": (64, 96)}))
    return zarr.open_group(folder, mode="r")


def unproject(group: Any, row: int) -> np.ndarray:
    """The depth map of one picture as points in the world [n 3], less the sky."""
    depth = group["depth"][row]
    scale = np.diag([*(np.array(depth.shape) / group["frames"].shape[1:3])[::-1], 1])
    v, u = np.indices(depth.shape) + 0.5
    rays = np.linalg.inv(scale @ group["intrinsics"][row]) @ np.stack([u.ravel(), v.ravel(), np.ones(u.size)])
    points = group["cam2world"][row] @ np.vstack([rays * depth.ravel(), np.ones(u.size)])
    return points[:3, depth.ravel() < 10].T


def test_every_row_says_what_it_shows(folder: Path) -> None:
    group: Any = zarr.open_group(folder, mode="r")
    assert group.attrs["complete"]
    assert group.attrs["tasks"] == ["reach-v3", "drawer-open-v3"]
    assert group["frames"].shape == (24, 16, 24, 3)
    np.testing.assert_array_equal(group["episode"][:], np.repeat(np.arange(4), 6))
    np.testing.assert_array_equal(group["task"][:], np.repeat([0, 1], 12))
    np.testing.assert_array_equal(group["camera"][:], np.tile([0, 1], 12))
    assert (group["frames"][:].std(axis=(1, 2, 3)) > 5).all()


def test_a_killed_run_is_finished_to_the_same_pictures(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed_in_the_second_episode(*arguments: Any) -> dict[str, np.ndarray]:
        if (tmp_path / "set" / "episode" / "c" / "0").exists():
            raise KeyboardInterrupt
        return render(*arguments)

    render = frames._render_episode
    monkeypatch.setattr(scene_sets, "run_jobs", here)
    monkeypatch.setattr(frames, "_render_episode", killed_in_the_second_episode)
    with pytest.raises(KeyboardInterrupt):
        render_frames(tmp_path / "set", **SETTINGS)
    begun: Any = zarr.open_group(tmp_path / "set", mode="r")
    assert not begun.attrs["complete"]
    np.testing.assert_array_equal(begun["episode"][:] >= 0, [True] * 6 + [False] * 18)

    monkeypatch.setattr(frames, "_render_episode", render)
    render_frames(tmp_path / "set", **SETTINGS)
    whole: Any = zarr.open_group(folder, mode="r")
    again: Any = zarr.open_group(tmp_path / "set", mode="r")
    np.testing.assert_array_equal(again["frames"][:], whole["frames"][:])
    np.testing.assert_array_equal(again["episode"][:], whole["episode"][:])


def test_more_workers_than_tasks_share_the_episodes_of_a_task(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared: list[Any] = []

    def note(function: Callable[[Any], Any], jobs: list[Any], *, workers: int) -> Iterator[Any]:
        shared.extend(jobs)
        return here(function, jobs, workers=workers)

    monkeypatch.setattr(scene_sets, "run_jobs", note)
    render_frames(tmp_path / "set", workers=5, **SETTINGS)
    assert [job[1:] for job in shared] == [(0, [0]), (0, [1]), (1, [0]), (1, [1])]
    ours, theirs = (zarr.open_group(place, mode="r")["frames"][:] for place in (tmp_path / "set", folder))
    assert np.array_equal(ours, theirs)


def test_a_complete_set_is_left_alone_and_another_is_refused(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("c/*")}
    render_frames(folder, **SETTINGS)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("c/*")} == before
    with pytest.raises(DataError, match="shift: 'strong' there, 'mild' wanted"):
        render_frames(folder, **SETTINGS, shift="mild")


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(DataError, match="no zarr group"):
        render_frames(tmp_path, **SETTINGS)


def test_mistakes_are_told_before_the_folder_exists(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="pick-place-v3"):
        render_frames(tmp_path / "a", tasks=["pick-palce"])
    with pytest.raises(UnknownNameError, match="gripperPOV"):
        render_frames(tmp_path / "a", cameras=["griperPOV"])
    with pytest.raises(UnknownNameError, match="camera for finger-spin"):  # of cheetah-run's cameras one is called so
        render_frames(tmp_path / "a", suite="dmcontrol", cameras=["side"])
    with pytest.raises(SettingError):
        render_frames(tmp_path / "a", episodes_per_task=10**6)
    assert not (tmp_path / "a").exists()


def test_the_hand_is_not_behind_what_is_seen_at_its_place(answered: Any) -> None:
    for row in np.flatnonzero(answered["camera"][:] == 0):
        point = np.linalg.inv(answered["cam2world"][row]) @ np.append(answered["hand"][row], 1)
        u, v = (answered["intrinsics"][row] @ point[:3])[:2] / point[2]
        depth = answered["depth"][row]
        i, j = np.floor(np.array([v, u]) * np.array(depth.shape) / (64, 96)).astype(int)
        seen = depth[i - 1 : i + 2, j - 1 : j + 2].min()  # between the fingers one sees the table
        assert point[2] - 0.15 < seen < point[2] + 0.01


def test_the_table_is_flat_and_the_object_lies_at_its_own_surface(answered: Any) -> None:
    for row in np.flatnonzero(answered["camera"][:] == 0):
        points = unproject(answered, row)
        table = np.abs(points[:, 2]) < 0.002
        assert table.mean() > 0.2
        assert np.linalg.norm(points - answered["object"][row], axis=1).min() < 0.04  # a puck of 2 cm


def test_answers_have_the_shape_of_the_pictures_and_say_what_they_mean(answered: Any, folder: Path) -> None:
    assert answered["depth"].shape == (12, 32, 48)
    for name in ("hand", "object", "depth", "intrinsics", "cam2world"):
        assert np.isfinite(answered[name][:]).all()
        assert answered[name].attrs["meaning"]
    assert len(np.unique(answered["object"][::6], axis=0)) == 2
    plain: Any = zarr.open_group(folder, mode="r")
    assert set(plain) == {"frames", "episode", "task", "camera"}


@pytest.mark.parametrize(
    ("size", "cells"),
    [((128, 128), (32, 32)), ((224, 224), (32, 32)), ((96, 128), (48, 64)), ((480, 640), (48, 64)), ((16, 24),) * 2],
)
def test_a_depth_map_has_square_cells_of_whole_pixels(size: tuple[int, int], cells: tuple[int, int]) -> None:
    assert depth_size(*size) == cells


def test_an_episode_that_would_outlast_the_simulator_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="lasts at most 500 steps, of which this takes up to 510"):
        render_frames(tmp_path / "a", frames_per_episode=9, stride=(2, 60))
    with pytest.raises(SettingError, match="rise from at least 1"):
        render_frames(tmp_path / "a", stride=(8, 4))


def test_looks_of_a_moment_differ_in_lights_and_colours_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scene_sets, "run_jobs", here)
    settings = SETTINGS | {"tasks": ["reach"], "frames_per_episode": 2, "size": 48}
    looked: Any = zarr.open_group(render_frames(tmp_path / "looks", looks=3, shift="looks", **settings), mode="r")
    plain: Any = zarr.open_group(render_frames(tmp_path / "plain", shift=None, **settings), mode="r")
    assert "look" not in plain
    np.testing.assert_array_equal(looked["look"][:], np.tile(np.repeat([0, 1, 2], 2), 4))
    np.testing.assert_array_equal(looked["camera"][:], np.tile([0, 1], 12))
    scenes = looked["frames"][:].reshape(2, 2, 3, 2, 48, 48, 3).astype(int)  # episode, moment, look, camera
    first = plain["frames"][:].reshape(2, 2, 2, 48, 48, 3)[:, 0]
    np.testing.assert_array_equal(scenes[:, 0, 0], first)  # a scene's own looks are those without a shift
    for number in (1, 2):
        assert np.abs(scenes[:, :, number] - scenes[:, :, 0]).mean(axis=(-3, -2, -1)).min() > 1
    assert np.abs(scenes[:, :, 1] - scenes[:, :, 2]).mean(axis=(-3, -2, -1)).min() > 1
    # Edges stay: where neighbours differ much in one look, something ends there in another.
    edges = np.abs(np.diff(scenes, axis=-2)).max(axis=-1) > 40
    both = (edges[:, :, 0] & edges[:, :, 1]).sum() / edges[:, :, 0].sum()
    turned = (edges[:, :, 0] & np.flip(edges[:, :, 1], axis=-1)).sum() / edges[:, :, 0].sum()
    assert both > 2 * turned


@pytest.mark.parametrize("shift", [None, "strong", "cameras", "all", "textures"])
def test_looks_between_which_pixels_would_move_are_refused(shift: str | None, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"looks=2 with shift=.*Take one of looks, lights, colors"):
        render_frames(tmp_path / "set", looks=2, shift=shift, **SETTINGS)
    assert not (tmp_path / "set").exists()
