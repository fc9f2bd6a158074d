from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from lerobot_env_pixio import frames, render_frames
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
    def killed_in_the_second_episode(*arguments: Any) -> np.ndarray:
        if (tmp_path / "set" / "episode" / "c" / "0").exists():
            raise KeyboardInterrupt
        return render(*arguments)

    render = frames._render_episode
    monkeypatch.setattr(frames, "run_jobs", here)
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
    with pytest.raises(SettingError):
        render_frames(tmp_path / "a", episodes_per_task=10**6)
    assert not (tmp_path / "a").exists()
