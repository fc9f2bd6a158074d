"""What every suite promises; the fast tests take one task of each, the slow ones all of them."""

import hashlib
import operator
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import cloudpickle
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector.utils import CloudpickleWrapper
from metaworld.env_dict import MT10_V3

from lerobot_env_pixio import TASKS, ManipulationEnv, collect_demonstrations, find_task, find_tasks, make_env, suites
from lerobot_env_pixio.processes import run_jobs
from lerobot_env_pixio.suites import SUITES, load_simulation
from pixio_robot.errors import SettingError, UnknownNameError

EVERY = [(suite, task) for suite, tasks in TASKS.items() for task in tasks]
ONE_EACH = [("metaworld", "reach-v3"), ("adroit", "pen"), ("dmcontrol", "reacher-easy"), ("aloha", "transfer-cube")]
SLOW = [pytest.param(*one, marks=[] if one in ONE_EACH else pytest.mark.slow) for one in EVERY]


def play(job: tuple[str, str, str | None]) -> str:
    """Two episodes of random actions, the first seed's last: a hash of all that they show."""
    suite, task, shift = job
    env = make_env(suite, task, size=32, shift=shift)
    for seed in (6, 5):
        shown = hashlib.sha256()
        observation, _ = env.reset(seed=seed)
        random = np.random.default_rng(seed)
        for _ in range(4):
            simulation = env.simulation
            wild = simulation.rest + simulation.noise * random.normal(size=(2, env.action_size))
            actions = np.clip(wild, simulation.action_low, simulation.action_high)
            for array in (*observation["pixels"].values(), observation["agent_pos"]):
                shown.update(np.ascontiguousarray(array).tobytes())
            observation, reward, *_ = env.advance(actions.astype(np.float32))
            shown.update(np.float64(reward).tobytes())
    env.close()
    return shown.hexdigest()


@pytest.fixture(scope="module", params=ONE_EACH, ids=lambda one: one[0])
def env(request: pytest.FixtureRequest) -> Iterator[ManipulationEnv]:
    made = make_env(*request.param, size=(40, 48))
    yield made
    made.close()


def test_every_suite_has_tasks_and_every_task_a_suite() -> None:
    assert TASKS.keys() == SUITES.keys()
    assert [(task.suite, task.name) for tasks in TASKS.values() for task in tasks.values()] == EVERY
    assert len({find_task(*one).gym_id for one in EVERY}) == len(EVERY)


@pytest.mark.filterwarnings("ignore:.*we recommend using a symmetric and normalized space")  # ALOHA's are angles
@pytest.mark.parametrize(("suite", "task"), SLOW)
def test_gymnasium_accepts_every_task(suite: str, task: str) -> None:
    env = make_env(suite, task, size=16)
    row = find_task(suite, task)
    check_env(env, skip_render_check=True)
    assert env.render().shape == (16, 16, 3)
    assert env.action_size == len(env.simulation.axes) == row.axes
    assert env.reset(seed=0)[1]["is_success"] is False
    assert env.step(env.simulation.rest)[4]["is_success"] in (True, False)
    env.close()


@pytest.mark.parametrize(("suite", "task"), EVERY)
@pytest.mark.slow
def test_a_second_of_simulated_time_is_as_many_steps_as_the_table_says(suite: str, task: str) -> None:
    simulation = load_simulation(suite)(task)
    simulation.reset(0)
    begin = simulation.data.time
    for _ in range(10):
        simulation.step(simulation.rest.astype(np.float32))
    assert 10 / (simulation.data.time - begin) == pytest.approx(find_task(suite, task).fps)


@pytest.mark.parametrize(("suite", "task"), SLOW)
def test_equal_seeds_give_equal_episodes_whatever_went_before(suite: str, task: str) -> None:
    """The first time round, seed 5 follows seed 6; in another environment it comes first."""
    env = make_env(suite, task, size=32)
    env.reset(seed=5)
    first = env.observe()
    env.reset(seed=6)
    env.advance(np.tile(env.simulation.rest, (3, 1)))
    env.reset(seed=5)
    again = env.observe()
    env.close()
    np.testing.assert_array_equal(first["agent_pos"], again["agent_pos"])
    for name in first["pixels"]:
        np.testing.assert_array_equal(first["pixels"][name], again["pixels"][name])


@pytest.mark.slow
@pytest.mark.parametrize("shift", [None, "all"])
def test_every_task_is_the_same_in_one_and_in_two_processes(shift: str | None) -> None:
    jobs = [(*one, shift) for one in EVERY]
    here = {play(job) for job in jobs}
    assert len(here) == len(jobs)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a worker cannot import a module of tests
    calls = [CloudpickleWrapper(partial(play, job)) for job in jobs]
    assert set(run_jobs(operator.call, calls, workers=2)) == here


def test_scenes_differ_by_seed(env: ManipulationEnv) -> None:
    seen = []
    for seed in (1, 2):
        env.reset(seed=seed)
        env.act(env.simulation.rest.astype(np.float32))
        seen.append(np.stack([*env.observe()["pixels"].values()]))
    assert (seen[0] != seen[1]).any()


@pytest.mark.parametrize("suite", [name for name, suite in SUITES.items() if not suite.has_expert])
def test_a_suite_without_expert_says_where_demonstrations_come_from(suite: str, tmp_path: Any) -> None:
    simulation = load_simulation(suite)(next(iter(TASKS[suite])))
    simulation.reset(0)
    with pytest.raises(SettingError, match=f"'{suite}' has no scripted expert.*LeRobotDataset of yours.*metaworld"):
        simulation.expert_action()
    with pytest.raises(SettingError, match="no scripted expert"):
        collect_demonstrations(tmp_path / "set", suite, next(iter(TASKS[suite])), episodes=1)


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError("No module named 'gymnasium_robotics'", name="gymnasium_robotics")

    monkeypatch.setattr(suites.importlib, "import_module", absent)
    with pytest.raises(SettingError, match=r"pip install 'lerobot_env_pixio\[adroit\]'"):
        make_env("adroit", "pen")


def test_sets_of_tasks_have_names() -> None:
    assert [task.name for task in find_tasks("metaworld", "mt10")] == list(MT10_V3)
    assert find_tasks("metaworld", ["hammer", "cortex-metaworld"])[0].name == "hammer-v3"
    assert len(find_tasks("metaworld", ["hammer", "cortex-metaworld"])) == 5
    assert len(find_tasks("metaworld")) == 50
    assert [task.name for task in find_tasks("adroit", "cortex-adroit")] == ["pen", "relocate"]
    with pytest.raises(UnknownNameError) as caught:
        find_tasks("metaworld", "mt11")
    assert caught.value.nearest == "mt10"


def test_what_can_only_be_done_well_ends_when_its_time_is_up_and_is_judged_by_its_mean_reward() -> None:
    env = make_env("dmcontrol", "reacher-easy", size=8, max_episode_steps=4)
    env.reset(seed=0)
    for reward, expected in ((1.0, True), (0.0, False), (1.0, False)):
        env.simulation.step = lambda _, reward=reward: (reward, False)
        _, _, terminated, truncated, info = env.step(env.simulation.rest)
        assert (terminated, truncated, info["is_success"]) == (False, False, expected)
    _, _, terminated, truncated, info = env.step(env.simulation.rest)
    env.close()
    assert (terminated, truncated, info["is_success"]) == (False, True, False)  # 3/4 is less than 0.77


def test_the_goal_has_to_be_held_in_adroit() -> None:
    simulation: Any = load_simulation("adroit")("pen")
    simulation.reset(0)
    simulation._env.step = lambda _: (None, 1.0, False, False, {"success": True})
    held = [simulation.step(simulation.rest)[1] for _ in range(22)]
    assert held == [False] * 20 + [True] * 2
    simulation.reset(0)
    simulation._env.step = lambda _: (None, 1.0, False, False, {"success": True})
    assert simulation.step(simulation.rest)[1] is False


@pytest.mark.parametrize(("suite", "task"), SLOW)
def test_the_whole_state_is_there_for_those_who_ask_and_for_nobody_else(suite: str, task: str) -> None:
    env, plain = make_env(suite, task, size=16, state=True), make_env(suite, task, size=16)
    (first, _), (blind, _) = env.reset(seed=3), plain.reset(seed=3)
    simulation = env.simulation
    pushed = np.clip(simulation.rest + simulation.noise, simulation.action_low, simulation.action_high)
    second, *_ = env.step(pushed.astype(np.float32))
    other, _ = env.reset(seed=4)
    again, _ = env.reset(seed=3)
    env.close()
    plain.close()
    assert (first["environment_state"] != second["environment_state"]).any()  # it is of now
    assert (first["environment_state"] != other["environment_state"]).any()  # and of this scene
    np.testing.assert_array_equal(first["environment_state"], again["environment_state"])
    assert env.observation_space.contains(first)
    assert "environment_state" not in blind
    assert env.settings == plain.settings | {"state": True}
    np.testing.assert_array_equal(first["agent_pos"], blind["agent_pos"])


def test_meta_worlds_state_tells_the_goal_which_the_library_hides_by_default() -> None:
    simulation: Any = load_simulation("metaworld")("pick-place-v3")
    simulation.reset(0)
    assert simulation.state().shape == (39,)
    np.testing.assert_allclose(simulation.state()[-3:], simulation._env._target_pos, rtol=1e-6)


def test_alohas_state_tells_where_every_object_is() -> None:
    simulation: Any = load_simulation("aloha")("insertion")
    simulation.reset(0)
    state = simulation.state()
    assert state.shape == (14 + 2 * 7,)
    np.testing.assert_array_equal(state[:14], simulation.position())
    for name in ("peg", "socket"):
        assert any(np.allclose(state[start : start + 3], simulation.data.body(name).xpos) for start in (14, 21))
