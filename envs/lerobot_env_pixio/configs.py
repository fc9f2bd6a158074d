"""LeRobot's door: ``--env.type=pixio_metaworld --env.task=button-press-topdown-v3``."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gymnasium
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.envs.utils import freeze_after_episode_end
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE

from lerobot_env_pixio.tasks import find_task

SUITE = "metaworld"


@EnvConfig.register_subclass("pixio_metaworld")
@dataclass
class PixioMetaWorldConfig(EnvConfig):
    """Meta-World as `make_env` gives it. Fields that are not described here are LeRobot's.

    Attributes:
        task: A task of Meta-World.
        cameras: Names of the cameras, the keys ``observation.images.<camera>``.
        height: Pixels.
        width: Pixels.
        render: "fast" or "full".
        shift: None, "mild" or "strong".
        episode_length: The time limit in steps; None for the task's own.
    """

    task: str | None = "button-press-topdown-v3"
    fps: int = 80
    cameras: list[str] = field(default_factory=lambda: ["corner2", "gripperPOV"])
    height: int = 128
    width: int = 128
    render: str = "fast"
    shift: str | None = None
    episode_length: int | None = None
    features: dict[str, PolicyFeature] = field(default_factory=dict)
    features_map: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.task = find_task(SUITE, self.task or "").name
        self.features = {
            "action": PolicyFeature(type=FeatureType.ACTION, shape=(4,)),
            "agent_pos": PolicyFeature(type=FeatureType.STATE, shape=(4,)),
        }
        self.features_map = {"action": ACTION, "agent_pos": OBS_STATE}
        for camera in self.cameras:
            shape = (self.height, self.width, 3)
            self.features[f"pixels/{camera}"] = PolicyFeature(type=FeatureType.VISUAL, shape=shape)
            self.features_map[f"pixels/{camera}"] = f"{OBS_IMAGES}.{camera}"

    @property
    def package_name(self) -> str:
        """Where gymnasium knows the tasks from."""
        return "lerobot_env_pixio"

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """The arguments of `make_env` beyond suite and task."""
        return {
            "cameras": self.cameras,
            "size": (self.height, self.width),
            "render": self.render,
            "shift": self.shift,
            "max_episode_steps": self.episode_length,
        }

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> dict[str, dict[int, VectorEnv]]:
        """Make the vector of environments.

        An environment whose episode has ended stands still until the next rollout. LeRobot's default would reset it in
        the same step and credit the finished episode with the reward of the next one's first step.
        """
        name = f"{self.package_name}:{self.gym_id}"  # a worker process imports the package first
        one = freeze_after_episode_end(
            partial(gymnasium.make, name, disable_env_checker=self.disable_env_checker, **self.gym_kwargs)
        )
        if use_async_envs and n_envs > 1:
            vector = AsyncVectorEnv([one] * n_envs, autoreset_mode=AutoresetMode.NEXT_STEP, context="spawn")
        else:
            vector = SyncVectorEnv([one] * n_envs, autoreset_mode=AutoresetMode.NEXT_STEP)
        return {SUITE: {0: vector}}
