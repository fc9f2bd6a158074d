import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from lerobot_env_pixio import ManipulationEnv, collect_demonstrations, demos, make_env, seeds
from lerobot_env_pixio.demos import demonstrate
from pixio_robot.errors import DataError, SettingError, UnknownNameError

SETTINGS: dict[str, Any] = {"episodes": 3, "cameras": ["corner2"], "size": 32}
TASK = ("metaworld", "reach-v3")


def here(function: Callable[[Any], Any], jobs: list[Any], *, workers: int) -> Iterator[Any]:
    """Stand in for `run_jobs` without processes."""
    return map(function, jobs)


def load(folder: Path) -> LeRobotDataset:
    return LeRobotDataset("local/test", root=folder, video_backend="pyav")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return collect_demonstrations(tmp_path_factory.mktemp("demos") / "set", *TASK, workers=1, **SETTINGS)


@pytest.fixture
def reach() -> Iterator[ManipulationEnv]:
    env = make_env(*TASK, cameras=["corner2"], size=32)
    yield env
    env.close()


def test_the_data_set_has_what_policies_train_on(folder: Path) -> None:
    data = load(folder)
    assert data.num_episodes == 3
    assert data.fps == 80
    assert data.features["observation.images.corner2"]["dtype"] == "video"
    first = data[0]
    assert first["observation.images.corner2"].shape == (3, 32, 32)
    assert first["observation.state"].shape == first["action"].shape == (4,)
    assert first["task"] == "Move the gripper to the goal"
    columns = data.hf_dataset.with_format("numpy")[:]
    assert np.abs(columns["action"]).max() <= 1
    assert list(dict.fromkeys(columns["seed"].tolist())) == seeds.draw(seeds.DEMONSTRATION, 3)
    for episode in range(3):
        assert columns["next.success"][columns["episode_index"] == episode].any()
    assert "observation.environment_state" not in data.features
    assert not list(folder.parent.glob("set.*"))


def test_the_whole_state_is_recorded_where_it_is_asked_for(folder: Path, tmp_path: Path) -> None:
    plain = load(folder)
    knowing = load(collect_demonstrations(tmp_path / "set", *TASK, **SETTINGS, state=True, workers=1))
    assert knowing.meta.stats["observation.environment_state"]["mean"].shape == (39,)
    told = knowing[5]["observation.environment_state"]
    np.testing.assert_array_equal(told[:3], knowing[5]["observation.state"][:3])  # the hand comes first
    np.testing.assert_array_equal(plain[5]["observation.state"], knowing[5]["observation.state"])


def test_pictures_are_what_a_policy_will_see(folder: Path, reach: ManipulationEnv) -> None:
    """The video costs next to nothing of the picture's truth."""
    stored = load(folder)[0]["observation.images.corner2"].permute(1, 2, 0).numpy() * 255
    live = reach.reset(seed=seeds.DEMONSTRATION[0])[0]["pixels"]["corner2"]
    assert np.abs(stored - live).max() < 4


def test_the_expert_is_recorded_without_the_noise(reach: ManipulationEnv) -> None:
    shown = demonstrate(reach, 0, noise=0.3)
    assert shown is not None
    reach.reset(seed=0)
    moved = [reach.simulation.position()]
    for action in shown.actions[:10]:
        reach.act(action)
        moved.append(reach.simulation.position())
    np.testing.assert_array_equal(shown.states[0], moved[0])
    assert np.abs(shown.states[10] - moved[10]).max() > 1e-3
    assert shown.successes[-9:].any()
    assert not shown.successes[:-9].any()


@pytest.mark.parametrize("killed", ["_play_seed", "_frames"])
def test_a_killed_run_is_finished_to_the_same_data(
    killed: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill_at_the_second(*arguments: Any, **named: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(*arguments, **named)

    calls: list[Any] = []
    whole = getattr(demos, killed)
    monkeypatch.setattr(demos, "run_jobs", here)
    monkeypatch.setattr(demos, killed, kill_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        collect_demonstrations(tmp_path / "set", *TASK, **SETTINGS)
    assert not (tmp_path / "set").exists()
    (tmp_path / "set.staging" / f"0000001.{os.getpid()}").write_bytes(b"half an episode")
    collect_demonstrations(tmp_path / "set", *TASK, **SETTINGS)

    one, two = (load(path).hf_dataset.with_format("numpy")[:] for path in (folder, tmp_path / "set"))
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])
    videos = [sorted(path.rglob("*.mp4")) for path in (folder, tmp_path / "set")]
    assert [path.read_bytes() for path in videos[0]] == [path.read_bytes() for path in videos[1]]


def test_seeds_at_which_the_expert_fails_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def play(job: tuple[Path, int]) -> bool:
        staging, seed = job
        demos._episode(staging, seed).write_bytes(b"" if seed in (1, 3) else b"fine")
        return seed not in (1, 3)

    monkeypatch.setattr(demos, "run_jobs", here)
    monkeypatch.setattr(demos, "_play_seed", play)
    assert demos._play(tmp_path, episodes=3, first_seed=0, workers=1) == [0, 2, 4]


def test_an_expert_that_never_succeeds_ends_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demos, "run_jobs", here)
    monkeypatch.setattr(demos, "_play_seed", lambda job: bool(demos._episode(*job).touch()))
    with pytest.raises(DataError, match="Lower the noise"):
        demos._play(tmp_path, episodes=3, first_seed=0, workers=1)


def test_the_same_is_reused_and_another_is_refused(folder: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    collect_demonstrations(folder, *TASK, **SETTINGS)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    with pytest.raises(DataError, match=r"noise: 0\.1 there, 0\.2 wanted"):
        collect_demonstrations(folder, *TASK, **SETTINGS, noise=0.2)
    with pytest.raises(DataError, match="no demonstrations of ours"):
        collect_demonstrations(tmp_path, *TASK, **SETTINGS)


def test_what_another_process_collects_is_waited_for_and_reused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def collect() -> None:
        with FileLock(tmp_path / ".set.lock"):
            begun.set()
            time.sleep(0.5)
            shutil.copytree(folder, tmp_path / "copy")
            (tmp_path / "copy").rename(tmp_path / "set")

    monkeypatch.setattr(demos, "_play", lambda *_, **__: pytest.fail("two were at it"))
    begun, other = threading.Event(), threading.Thread(target=collect)
    other.start()
    begun.wait()
    assert collect_demonstrations(tmp_path / "set", *TASK, **SETTINGS) == tmp_path / "set"
    other.join()


def test_mistakes_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="reach-v3"):
        collect_demonstrations(tmp_path / "a", "metaworld", "raech", episodes=1)
    with pytest.raises(SettingError):
        collect_demonstrations(tmp_path / "a", *TASK, episodes=0)
    assert not (tmp_path / "a").exists()
