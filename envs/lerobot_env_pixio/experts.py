"""Demonstrations of the scripted experts, played with noise so that they show how to recover."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lerobot_env_pixio.environment import ManipulationEnv

_AFTERMATH = 8  # steps that are kept after the first success, so that the last chunk of actions has a target


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """One successful episode of t steps.

    Attributes:
        pixels: What each camera saw before each action, uint8 [t h w 3].
        states: What the robot knew of itself, float32 [t s].
        actions: What the expert wanted, float32 [t a]; what was done differs from it by the noise.
        rewards: Reward of each action, float32 [t].
        successes: Whether the task stood solved after each action, bool [t].
        environment_states: The scene's whole state before each action, float32 [t s]; None where it is not observed.
    """

    pixels: dict[str, NDArray[np.uint8]]
    states: NDArray[np.float32]
    actions: NDArray[np.float32]
    rewards: NDArray[np.float32]
    successes: NDArray[np.bool_]
    environment_states: NDArray[np.float32] | None = None


def demonstrate(env: ManipulationEnv, seed: int, *, noise: float) -> Demonstration | None:
    """Let the expert play one episode and stop shortly after the first success.

    Noise is added to the actions that are executed while the expert's own are recorded, so that the demonstrations
    cover the surroundings of the expert's path (DART, https://arxiv.org/abs/1703.09327).

    Args:
        env: The environment.
        seed: The scene; it also fixes the noise.
        noise: Standard deviation of the noise, in units of the simulation's own ``noise``: for most suites actions run
            from -1 to 1, and that unit is 1.

    Returns:
        The episode, or None if the expert failed within the time limit.

    Raises:
        SettingError: The suite has no expert.
    """
    random = np.random.default_rng([seed, 3])
    simulation = env.simulation
    observation, _ = env.reset(seed=seed)
    steps, remaining = [], env.max_episode_steps
    while remaining > 0:
        wanted = simulation.expert_action()
        disturbed = wanted + noise * simulation.noise * random.normal(size=wanted.shape)
        done = np.clip(disturbed, simulation.action_low, simulation.action_high).astype(np.float32)
        reward, success = env.act(done)
        steps.append((observation, wanted, reward, success))
        remaining = min(remaining - 1, _AFTERMATH) if success else remaining - 1
        observation = env.observe()
    observations, actions, rewards, successes = zip(*steps, strict=True)
    if not any(successes):
        return None
    has_state = "environment_state" in observation
    return Demonstration(
        pixels={name: np.stack([seen["pixels"][name] for seen in observations]) for name in env.cameras.names},
        states=np.stack([seen["agent_pos"] for seen in observations]),
        actions=np.stack(actions),
        rewards=np.array(rewards, np.float32),
        successes=np.array(successes),
        environment_states=np.stack([seen["environment_state"] for seen in observations]) if has_state else None,
    )
