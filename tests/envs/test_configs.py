import subprocess
import sys
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv
from lerobot.envs.configs import EnvConfig
from lerobot.envs.utils import check_env_attributes_and_types, env_to_policy_features, preprocess_observation

from lerobot_env_pixio import TASKS, find_task
from lerobot_env_pixio.configs import PixioControlSuiteConfig, PixioEnvConfig, PixioMetaWorldConfig
from pixio_robot.errors import UnknownNameError


@pytest.fixture
def config() -> PixioMetaWorldConfig:
    return PixioMetaWorldConfig(task="reach", height=16, width=24, episode_length=3)


@pytest.mark.slow
def test_lerobot_discovers_the_package_by_its_name() -> None:
    code = (
        "from lerobot.utils.import_utils import register_third_party_plugins\n"
        "register_third_party_plugins()\n"
        "from lerobot.envs.configs import EnvConfig\n"
        "print(EnvConfig.get_choice_class('pixio_metaworld').__module__)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip().endswith("lerobot_env_pixio.configs")


def test_a_worker_is_spared_lerobot() -> None:
    code = (
        "import sys, lerobot_env_pixio\n"
        "from lerobot_env_pixio import fleet, frames, demos\n"
        "print('lerobot' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_every_task_has_a_gymnasium_id(config: PixioMetaWorldConfig) -> None:
    assert EnvConfig.get_choice_class("pixio_metaworld") is PixioMetaWorldConfig
    assert config.gym_id == "lerobot_env_pixio/reach-v3"
    assert gymnasium.spec(config.gym_id).max_episode_steps == find_task("metaworld", "reach").max_episode_steps


@pytest.mark.parametrize("in_processes", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_observations_have_the_keys_that_policies_are_built_for(
    config: PixioMetaWorldConfig, in_processes: bool
) -> None:
    vector = config.create_envs(2, use_async_envs=in_processes)["metaworld"][0]
    observation = preprocess_observation(vector.reset(seed=[1, 2])[0])
    features = env_to_policy_features(config)
    with warnings.catch_warnings(action="error"):
        check_env_attributes_and_types(vector)  # ends the processes of an environment that lacks one
    described, limit = vector.call("task_description"), vector.call("_max_episode_steps")
    vector.close()
    assert features.keys() - {"action"} == observation.keys()
    for name, tensor in observation.items():
        assert tensor.shape[0] == 2
        assert sorted(tensor.shape[1:]) == sorted(features[name].shape)
    assert described == ("Move the gripper to the goal",) * 2
    assert limit == (3, 3)


def test_an_ended_episode_stands_still_for_the_rest_of_the_rollout(config: PixioMetaWorldConfig) -> None:
    vector = config.create_envs(2)["metaworld"][0]
    vector.reset(seed=[1, 2])
    up = np.tile(np.array([0, 0, 1, 0], np.float32), (2, 1))
    steps = [vector.step(up) for _ in range(6)]
    vector.close()
    assert [step[3].all() for step in steps[:3]] == [False, False, True]
    for step in steps[3:]:
        np.testing.assert_array_equal(step[0]["agent_pos"], steps[2][0]["agent_pos"])
    assert all("is_success" in step[4] or "is_success" in step[4].get("final_info", {}) for step in steps[:3])


@pytest.mark.parametrize(("rewards", "successes"), [((1, 0, 0), (0, 0, 0)), ((1, 1, 1), (0, 0, 1))])
def test_a_task_to_be_done_well_all_the_time_succeeds_at_its_end_or_not_at_all(
    rewards: tuple[float, ...], successes: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = PixioControlSuiteConfig(task="walker-stand", height=16, width=16, episode_length=3)
    vector = config.create_envs(1)["dmcontrol"][0]
    assert isinstance(vector, SyncVectorEnv)
    vector.reset(seed=[1])
    earned: Any = iter(rewards)
    env: Any = vector.envs[0].unwrapped
    monkeypatch.setattr(env.simulation, "step", lambda action: (next(earned), False))
    told = [vector.step(np.zeros((1, 6), np.float32))[4] for _ in rewards]
    vector.close()
    assert tuple(one["is_success"].item() for one in told) == successes


def test_a_typo_on_the_command_line_is_answered_with_the_nearest_task() -> None:
    with pytest.raises(UnknownNameError, match="'button-press-topdown-v3'"):
        PixioMetaWorldConfig(task="button-press-topdwn-v3")


@pytest.mark.parametrize(("kind", "suite"), [(f"pixio_{suite}", suite) for suite in TASKS])
def test_every_suite_has_a_door(kind: str, suite: str) -> None:
    made = EnvConfig.get_choice_class(kind)
    config = made(height=16, width=16, episode_length=2)
    assert isinstance(config, PixioEnvConfig)
    assert config.type == kind
    row = find_task(suite, str(config.task))
    assert (config.fps, config.cameras) == (row.fps, list(row.cameras))
    vector = config.create_envs(1)[suite][0]
    observation = preprocess_observation(vector.reset(seed=[1])[0])
    features = env_to_policy_features(config)
    ends = [vector.step(np.zeros((1, row.axes), np.float32))[3].all() for _ in range(2)]
    vector.close()
    assert ends == [False, True]
    assert features.keys() - {"action"} == observation.keys()
    assert features["action"].shape == (row.axes,)
