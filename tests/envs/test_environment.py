from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from metaworld.env_dict import ALL_V3_ENVIRONMENTS

from lerobot_env_pixio import TASKS, ManipulationEnv, make_env
from pixio_robot.errors import SettingError, UnknownNameError


def play(env: ManipulationEnv, seed: int, actions: np.ndarray) -> list[np.ndarray]:
    """Everything that an episode shows, flat."""
    observation, _ = env.reset(seed=seed)
    shown = [observation]
    rewards = []
    for action in actions:
        observation, reward, *_ = env.step(action)
        shown.append(observation)
        rewards.append(reward)
    arrays = [array for one in shown for array in (one["agent_pos"], *one["pixels"].values())]
    return [np.array(rewards), *arrays]


@pytest.fixture
def actions() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, size=(12, 4)).astype(np.float32)


def test_the_table_of_tasks_is_metaworlds() -> None:
    assert list(TASKS["metaworld"]) == sorted(ALL_V3_ENVIRONMENTS)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("pick-place-v3", "push-v3") else pytest.mark.slow)
        for name, task in TASKS["metaworld"].items()
        if task.milestones
    ],
)
def test_an_expert_passes_the_milestones_in_their_order_and_a_robot_at_rest_none(name: str) -> None:
    env = make_env("metaworld", name, size=16)
    env.simulation.reset(3)
    for _ in range(60):
        env.act(env.simulation.rest)
    assert env.milestone == ""
    told, success = [env.milestone], False
    while not success:
        _, success = env.act(env.simulation.expert_action())
        told.append(env.milestone)
    assert list(dict.fromkeys(told)) == ["", *TASKS["metaworld"][name].milestones]
    env.reset(seed=4)
    assert env.milestone == ""


def test_a_task_without_milestones_says_so() -> None:
    env = make_env("metaworld", "button-press-topdown", size=16)
    env.reset(seed=0)
    assert env.milestone is None


def test_gymnasium_accepts_the_environment(env: ManipulationEnv) -> None:
    check_env(env, skip_render_check=True)


def test_gymnasium_makes_it_by_name_with_its_time_limit() -> None:
    settings: dict[str, Any] = {"size": 16, "max_episode_steps": 3, "render_mode": "rgb_array"}
    made = gymnasium.make("lerobot_env_pixio/pick-place-v3", **settings)
    made.reset(seed=0)
    ends = [made.step(made.action_space.sample())[3] for _ in range(3)]
    made.close()
    assert ends == [False, False, True]
    vector = gymnasium.make_vec("lerobot_env_pixio/pick-place-v3", num_envs=2, **settings)
    vector.reset(seed=[0, 1])
    both = [vector.step(vector.action_space.sample())[3].tolist() for _ in range(3)]
    vector.close()
    assert both == [[False] * 2, [False] * 2, [True] * 2]


def test_gymnasium_makes_it_with_the_mode_that_it_renders_in() -> None:
    for mode in ("rgb_array", None):
        made = gymnasium.make("lerobot_env_pixio/reach-v3", render_mode=mode, size=16)
        made.reset(seed=0)
        picture: Any = made.render()
        again = gymnasium.make(made.spec or "")
        assert (made.render_mode, picture.shape, again.spec) == ("rgb_array", (16, 16, 3), made.spec)
        made.close()
        again.close()
    with pytest.raises(SettingError, match="render_mode='human': choose 'rgb_array'"):
        gymnasium.make("lerobot_env_pixio/reach-v3", render_mode="human")


@pytest.mark.parametrize(("asked", "limit"), [({}, 200), ({"max_episode_steps": 300}, 300)])
def test_gymnasiums_time_limit_is_the_one_that_counts(asked: dict[str, Any], limit: int) -> None:
    """Alone and in a vector, whether one is asked for or not."""
    name = "lerobot_env_pixio/reach-v3"
    made = gymnasium.make(name, size=16, **asked)
    vector: Any = gymnasium.make_vec(name, num_envs=2, render_mode="rgb_array", size=16, **asked)
    for one in (made, *vector.envs):
        assert one.get_wrapper_attr("_max_episode_steps") == one.spec.max_episode_steps == limit
        assert one.unwrapped.max_episode_steps == 500
    made.close()
    vector.close()


def test_a_time_limit_beyond_the_horizon_is_refused_by_gymnasium_too() -> None:
    for make in (gymnasium.make, gymnasium.make_vec):
        with pytest.raises(SettingError, match="max_episode_steps=600: reach-v3 runs from 1 to 500 steps"):
            make("lerobot_env_pixio/reach-v3", size=16, max_episode_steps=600)
    made = gymnasium.make("lerobot_env_pixio/reach-v3", size=16, max_episode_steps=-1)  # no limit but the horizon
    made.close()


def test_equal_seeds_give_equal_physics_and_pixels_whatever_went_before(
    env: ManipulationEnv, actions: np.ndarray
) -> None:
    first = play(env, 7, actions)
    play(env, 8, actions)
    other = make_env("metaworld", "pick-place-v3", size=(48, 64))
    again, elsewhere = play(env, 7, actions), play(other, 7, actions)
    other.close()
    for one, two, three in zip(first, again, elsewhere, strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, three)


def test_different_seeds_give_different_scenes(env: ManipulationEnv, actions: np.ndarray) -> None:
    first, second = (play(env, seed, actions[:1]) for seed in (7, 8))
    assert any((one != two).any() for one, two in zip(first[3:5], second[3:5], strict=True))


def test_a_chunk_is_its_steps_but_for_the_looking(env: ManipulationEnv, actions: np.ndarray) -> None:
    env.reset(seed=3)
    steps = [env.step(action) for action in actions]
    env.reset(seed=3)
    observation, reward, terminated, truncated, info = env.advance(actions)
    np.testing.assert_array_equal(observation["agent_pos"], steps[-1][0]["agent_pos"])
    for name, picture in observation["pixels"].items():
        np.testing.assert_array_equal(picture, steps[-1][0]["pixels"][name])
    assert reward == pytest.approx(sum(step[1] for step in steps))
    assert (terminated, truncated, info["steps"]) == (False, False, len(actions))


def test_a_chunk_stops_at_success_and_at_the_time_limit() -> None:
    made = make_env("metaworld", "reach-v3", size=16, max_episode_steps=60)
    made.reset(seed=0)
    for _ in range(60):
        _, _, terminated, truncated, info = made.step(made.simulation.expert_action())
        if terminated:
            break
    assert terminated
    assert info["is_success"]
    assert not truncated
    made.reset(seed=0)
    _, _, terminated, truncated, info = made.advance(np.zeros((90, 4), np.float32))
    made.close()
    assert (terminated, truncated, info) == (False, True, {"is_success": False, "steps": 60})


def test_an_unseeded_reset_follows_the_last_seed(env: ManipulationEnv) -> None:
    env.reset(seed=1)
    drawn = env.reset()[1]["seed"]
    env.reset(seed=1)
    assert env.reset()[1]["seed"] == drawn


@pytest.mark.parametrize("bad", [np.zeros(4), np.zeros((0, 4)), np.zeros((2, 3)), np.full((1, 4), np.nan)])
def test_bad_actions_are_refused(env: ManipulationEnv, bad: np.ndarray) -> None:
    env.reset(seed=0)
    with pytest.raises(SettingError, match="ction"):
        env.advance(bad)


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ({"suite": "meta-world"}, "metaworld"),
        ({"task": "pick-plaec-v3"}, "pick-place-v3"),
        ({"cameras": ("corner2", "griperPOV")}, "gripperPOV"),
        ({"render": "fats"}, "fast"),
        ({"shift": "strogn"}, "strong"),
    ],
)
def test_a_typo_is_answered_with_the_nearest_name(wrong: dict[str, Any], nearest: str) -> None:
    arguments: dict[str, Any] = {"suite": "metaworld", "task": "pick-place", **wrong}
    with pytest.raises(UnknownNameError) as caught:
        make_env(**arguments)
    assert caught.value.nearest == nearest


@pytest.mark.parametrize(
    "wrong", [{"max_episode_steps": 501}, {"size": 0}, {"cameras": ()}, {"cameras": ("corner",) * 2}]
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        make_env("metaworld", "reach", **wrong)


def test_a_shift_changes_the_looks_by_seed_and_never_the_physics(env: ManipulationEnv, actions: np.ndarray) -> None:
    shifted = make_env("metaworld", "pick-place-v3", size=(48, 64), shift="strong")
    plain, first = play(env, 5, actions), play(shifted, 5, actions)
    other, again = play(shifted, 6, actions), play(shifted, 5, actions)
    shifted.close()
    np.testing.assert_array_equal(plain[0], first[0])
    np.testing.assert_array_equal(plain[1], first[1])
    assert np.abs(plain[2].astype(int) - first[2]).mean() > 3
    assert np.abs(other[2].astype(int) - first[2]).mean() > 3
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)


def test_looks_change_in_the_midst_of_an_episode_and_come_back(env: ManipulationEnv, actions: np.ndarray) -> None:
    shifted = make_env("metaworld", "pick-place-v3", size=(48, 64), shift="strong")
    for each in (env, shifted):
        each.reset(seed=5)
        each.act(actions[0])
    own, drawn = env.observe()["pixels"], shifted.observe()["pixels"]
    shifted.change_looks(6)
    other = shifted.observe()["pixels"]
    shifted.change_looks(5)
    again = shifted.observe()["pixels"]
    shifted.change_looks(None)
    back = shifted.observe()["pixels"]
    shifted.close()
    for camera, picture in own.items():
        np.testing.assert_array_equal(back[camera], picture)
        np.testing.assert_array_equal(again[camera], drawn[camera])
        assert (other[camera] != drawn[camera]).mean() > 0.3
    with pytest.raises(SettingError, match="name a shift, such as shift='looks'"):
        env.change_looks(None)
