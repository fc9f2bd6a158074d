from functools import partial
from pathlib import Path
from types import ModuleType

import av
import numpy as np
import pytest

from lerobot_env_pixio import EpisodeRecord, make_env, read_records, rollout, write_records
from lerobot_env_pixio.environment import Observation
from lerobot_env_pixio.rollouts import decide
from pixio_robot.errors import DataError, SettingError

SEEDS = range(1_000_000, 1_000_005)
MAKE = partial(make_env, "metaworld", "button-press-topdown", size=16)


def press(observation: Observation) -> np.ndarray:
    """Go to the middle of where buttons stand, then down, four actions at a time: right on some scenes only."""
    hand = observation["agent_pos"][:, :3]
    above = np.array([0.0, 0.85, 0.4])
    there = np.abs(hand[:, :2] - above[:2]).max(axis=1, keepdims=True) < 0.05
    target = np.where(there, above - [0, 0, 0.4], above)
    moves = np.clip(10 * (target - hand), -1, 1)
    action = np.concatenate([moves, np.ones((len(hand), 1))], axis=1)
    return np.repeat(action[:, None], 4, axis=1)  # b k a


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[EpisodeRecord]:
    films = tmp_path_factory.mktemp("films")
    return rollout(press, MAKE, seeds=SEEDS, workers=2, slots=3, arm="press", videos=1, video_folder=films)


def test_the_number_of_workers_changes_nothing(records: list[EpisodeRecord]) -> None:
    alone = rollout(press, MAKE, seeds=SEEDS, workers=1, slots=3)
    for one, two in zip(records, alone, strict=True):
        assert (one.env_seed, one.success, one.steps) == (two.env_seed, two.success, two.steps)
        assert one.total_reward == pytest.approx(two.total_reward, rel=1e-12)


def test_records_follow_the_seeds_and_tell_success_from_failure(records: list[EpisodeRecord]) -> None:
    assert [record.env_seed for record in records] == list(SEEDS)
    assert {record.success for record in records} == {True, False}
    assert all(record.steps == 200 for record in records if not record.success)
    assert all(record.steps < 200 for record in records if record.success)
    assert records[0].task == "button-press-topdown-v3"
    assert records[0].versions["mujoco"] == "3.8.1"


def test_a_film_shows_every_step_and_all_cameras(records: list[EpisodeRecord]) -> None:
    assert [record.video is not None for record in records] == [True] + [False] * 4
    with av.open(str(records[0].video)) as film:
        assert film.streams.video[0].codec_context.name == "h264"
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    assert len(frames) == records[0].steps + 1
    assert frames[0].shape == (16, 32, 3)


def test_records_survive_the_file(records: list[EpisodeRecord], tmp_path: Path) -> None:
    path = tmp_path / "runs" / "records.jsonl"
    write_records(path, records[:2])
    write_records(path, records[2:])
    assert read_records(path) == records
    path.write_text(path.read_text() + '{"suite": "metaworld"}\n')
    with pytest.raises(DataError, match="line 6"):
        read_records(path)


FAULTY = """
import os, time
from lerobot_env_pixio import make_env

def make():
    env = make_env("metaworld", "reach", size=8, max_episode_steps=20)
    step, reset, state = env.simulation.step, env.simulation.reset, {}

    def faulty_reset(seed):
        state["seed"], state["steps"] = seed, 0
        reset(seed)

    def faulty_step(action):
        state["steps"] += 1
        if state["steps"] == 5 and state["seed"] == 1:
            raise ArithmeticError("broken joint")
        if state["steps"] == 5 and state["seed"] == 2:
            os._exit(7)
        if state["steps"] == 5 and state["seed"] == 3:
            time.sleep(600)
        return step(action)

    env.simulation.reset, env.simulation.step = faulty_reset, faulty_step
    return env
"""


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module that worker processes can import too."""
    (tmp_path / "faulty_scene.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(str(tmp_path))
    import faulty_scene  # pyright: ignore[reportMissingImports]

    return faulty_scene


def stand(observation: Observation) -> np.ndarray:
    return np.zeros((len(observation["agent_pos"]), 2, 4))


def test_what_the_environment_does_wrong_is_no_failure_of_the_policy(faulty: ModuleType) -> None:
    records = rollout(stand, faulty.make, seeds=range(6), workers=2, slots=4, patience=5)
    errors = {record.env_seed: record.error for record in records if record.error}
    assert errors.keys() == {1, 2, 3}
    assert "broken joint" in errors[1]
    assert "exit status 7" in errors[2]
    assert "no answer within 5 seconds" in errors[3]
    assert [record.success for record in records] == [False, None, None, None, False, False]
    assert [record.steps for record in records if record.error is None] == [20, 20, 20]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"seeds": []}, "at least one"),
        ({"seeds": [1, 1]}, "none twice"),
        ({"workers": 0}, "at least 1"),
        ({"videos": 1}, "video_folder"),
        ({"make": lambda: make_env("metaworld", "reach")}, "partial"),
    ],
)
def test_bad_arguments_are_refused_before_any_process_starts(arguments: dict, match: str) -> None:
    with pytest.raises(SettingError, match=match):
        rollout(stand, **{"make": MAKE, "seeds": [1], **arguments})


@pytest.mark.parametrize("actions", [np.zeros(4), np.zeros((2, 4)), np.full((1, 4), np.nan)])
def test_a_policy_that_gives_no_actions_is_told(actions: np.ndarray) -> None:
    seen = {0: {"pixels": {"corner2": np.zeros((8, 8, 3), np.uint8)}, "agent_pos": np.zeros(4, np.float32)}}
    with pytest.raises(SettingError, match="The policy gave"):
        decide(lambda _: actions, seen)
