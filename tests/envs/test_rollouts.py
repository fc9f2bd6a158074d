from functools import partial
from pathlib import Path
from types import ModuleType

import av
import numpy as np
import pytest

from lerobot_env_pixio import EpisodeRecord, make_env, memory, read_records, rollout, write_records
from lerobot_env_pixio.environment import Observation
from lerobot_env_pixio.fleet import Film, Fleet, Outcome
from lerobot_env_pixio.rollouts import decide
from lerobot_env_pixio.videos import side_by_side
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


def test_the_first_failure_and_the_first_success_are_filmed_as_they_were(records: list[EpisodeRecord]) -> None:
    filmed = [record for record in records if record.video is not None]
    assert filmed == [next(one for one in records if one.success is success) for success in (True, False)] or (
        filmed == [next(one for one in records if one.success is success) for success in (False, True)]
    )
    for record in filmed:
        assert Path(str(record.video)).stem.endswith("success" if record.success else "failure")
        with av.open(str(record.video)) as film:
            assert film.streams.video[0].codec_context.name == "h264"
            frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
        assert len(frames) == record.steps + 1  # had it gone another way, it would have ended at another time
        assert frames[0].shape == (16, 32, 3)


def test_cameras_of_different_height_stand_side_by_side() -> None:
    picture = side_by_side({"a": np.ones((4, 6, 3), np.uint8), "b": np.ones((2, 3, 3), np.uint8)})
    assert picture.shape == (4, 9, 3)
    assert picture[2:, 6:].max() == 0
    assert picture[:2].min() == 1


def test_more_environments_than_memory_are_refused_with_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 2000 * 2**20)
    memory.refuse_too_many("metaworld", slots=4, workers=2)
    with pytest.raises(SettingError, match=r"slots=100.*2000 MB are free.*slots=7 would fit"):
        rollout(stand, MAKE, seeds=range(200), slots=100, workers=2)


def test_where_nobody_knows_how_much_memory_is_free_all_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: None)
    memory.refuse_too_many("metaworld", slots=10**6, workers=2)


def test_records_survive_the_file(records: list[EpisodeRecord], tmp_path: Path) -> None:
    path = tmp_path / "runs" / "records.jsonl"
    write_records(path, records[:2])
    write_records(path, records)  # in its place
    assert read_records(path) == records
    path.write_text(path.read_text() + '{"suite": "metaworld"}\n')
    with pytest.raises(DataError, match="line 6"):
        read_records(path)


def test_a_torn_last_line_is_left_out_and_said(
    records: list[EpisodeRecord], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "records.jsonl"
    write_records(path, records[:3])
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])  # a kill in the middle of the third line
    assert read_records(path) == records[:2]
    assert "torn off by a kill" in caplog.text
    path.write_bytes(whole[:-1])  # only the line break is missing
    assert read_records(path) == records[:3]
    path.write_bytes(b"{}" + whole[:-40])  # the first line is another matter
    with pytest.raises(DataError, match="line 1"):
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


def test_records_say_how_far_an_episode_came(tmp_path: Path) -> None:
    lift = partial(make_env, "metaworld", "pick-place", size=16, max_episode_steps=4)
    (played,) = rollout(stand, lift, seeds=[7])
    assert (played.success, played.milestone) == (False, "")
    press = partial(make_env, "metaworld", "button-press", size=16, max_episode_steps=4)
    (unsaid,) = rollout(stand, press, seeds=[7])
    assert unsaid.milestone is None
    write_records(tmp_path / "records.jsonl", [played, unsaid])
    assert read_records(tmp_path / "records.jsonl") == [played, unsaid]


def test_what_the_environment_does_wrong_is_no_failure_of_the_policy(faulty: ModuleType) -> None:
    records = rollout(stand, faulty.make, seeds=range(6), workers=2, slots=4, patience=5)
    errors = {record.env_seed: record.error for record in records if record.error}
    assert errors.keys() == {1, 2, 3}
    assert "broken joint" in errors[1]
    assert "exit status 7" in errors[2]
    assert "no answer within 5 seconds" in errors[3]
    assert [record.success for record in records] == [False, None, None, None, False, False]
    assert [record.steps for record in records if record.error is None] == [20, 20, 20]


def test_a_film_that_was_whole_when_its_worker_died_is_kept(faulty: ModuleType, tmp_path: Path) -> None:
    """The process dies at the fifth step of the second."""
    films = [
        Film(slot=slot, seed=seed, actions=np.zeros((6, 4), np.float32), path=tmp_path / f"{seed}.mp4")
        for slot, seed in enumerate((0, 2))
    ]
    with Fleet(faulty.make, workers=1, patience=60) as fleet:
        answers = fleet.ask(films)
    assert answers[0] == tmp_path / "0.mp4"
    assert isinstance(answers[1], Outcome)
    assert "exit status 7" in str(answers[1].error)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"seeds": []}, "at least one"),
        ({"seeds": [1, 1]}, "none twice"),
        ({"workers": 0}, "at least 1"),
        ({"videos": 1}, "video_folder"),
        ({"make": lambda: make_env("metaworld", "reach")}, "partial"),
        ({"videos": -1, "video_folder": "films"}, "videos=-1: must be at least 0"),
    ],
)
def test_bad_arguments_are_refused_before_any_process_starts(arguments: dict, match: str) -> None:
    with pytest.raises(SettingError, match=match):
        rollout(stand, **{"make": MAKE, "seeds": [1], **arguments})


@pytest.mark.parametrize(
    "actions", [np.zeros(4), np.zeros((2, 4)), np.full((1, 4), np.nan), np.zeros((1, 7)), np.zeros((1, 0, 4))]
)
def test_a_policy_that_gives_no_actions_is_told(actions: np.ndarray) -> None:
    seen = {0: {"pixels": {"corner2": np.zeros((8, 8, 3), np.uint8)}, "agent_pos": np.zeros(4, np.float32)}}
    with pytest.raises(SettingError, match=r"The policy gave .* \[1 4\] or, as chunks, \[1 k 4\]"):
        decide(lambda _: actions, seen, axes=4)


def test_scenes_may_be_counted_in_numpy_and_a_policy_of_another_robot_is_told_at_once() -> None:
    make = partial(make_env, "metaworld", "reach-v3", size=16, max_episode_steps=4)
    records = rollout(stand, make, seeds=np.arange(2))  # pyright: ignore[reportArgumentType]
    assert [(type(record.env_seed), record.error) for record in records] == [(int, None)] * 2
    with pytest.raises(SettingError, match=r"shape \[1, 7\] for 1 observations"):
        rollout(lambda seen: np.zeros((len(seen["agent_pos"]), 7)), make, seeds=[1])


def test_a_policy_sees_the_whole_state_where_the_environment_gives_it() -> None:
    asked = []

    def see(observation: dict[str, np.ndarray]) -> np.ndarray:
        asked.append(observation["environment_state"].shape)
        return np.zeros((len(observation["agent_pos"]), 4, 4))

    make = partial(make_env, "metaworld", "reach-v3", size=16, state=True, max_episode_steps=4)
    (record,) = rollout(see, make, seeds=[7])
    assert asked == [(1, 39)]
    assert record.settings["state"] is True
