"""LeRobot's doors: ``--env.type=pixio_metaworld --env.task=button-press-topdown-v3``, and one for every other suite."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, SupportsFloat

import gymnasium
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.envs.utils import freeze_after_episode_end
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE

from lerobot_env_pixio.tasks import find_task


@dataclass
class PixioEnvConfig(EnvConfig):
    """A suite as `make_env` gives it. Fields that are not described here are LeRobot's.

    Attributes:
        task: A task of the suite.
        fps: Steps per second of simulated time; 0 for the task's own.
        cameras: Names of the cameras, the keys ``observation.images.<camera>``; empty for the task's own.
        height: Pixels.
        width: Pixels.
        render: "fast" or "full".
        shift: None, "mild", "strong" or another of ``SHIFTS``.
        split: None, "train" or "test": the looks that the shift draws from.
        episode_length: The time limit in steps; None for the task's own.
    """

    suite: ClassVar[str]

    task: str | None = None
    fps: int = 0
    cameras: list[str] = field(default_factory=list)
    height: int = 128
    width: int = 128
    render: str = "fast"
    shift: str | None = None
    split: str | None = None
    episode_length: int | None = None
    features: dict[str, PolicyFeature] = field(default_factory=dict)
    features_map: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        row = find_task(self.suite, self.task or "")
        self.task, self.fps, self.cameras = row.name, self.fps or row.fps, self.cameras or list(row.cameras)
        self.features = {
            "action": PolicyFeature(type=FeatureType.ACTION, shape=(row.axes,)),
            "agent_pos": PolicyFeature(type=FeatureType.STATE, shape=(row.axes,)),
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
    def gym_id(self) -> str:
        """What gymnasium knows the task by."""
        return find_task(self.suite, self.task or "").gym_id

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """The arguments of `make_env` beyond suite and task."""
        return {
            "cameras": self.cameras,
            "size": (self.height, self.width),
            "render": self.render,
            "shift": self.shift,
            "split": self.split,
            "max_episode_steps": self.episode_length,
        }

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> dict[str, dict[int, VectorEnv]]:
        """Make the vector of environments.

        An environment whose episode has ended stands still until the next rollout. LeRobot's default would reset it in
        the same step and credit the finished episode with the reward of the next one's first step.
        """
        name = f"{self.package_name}:{self.gym_id}"  # a worker process imports the package first
        settings = {"disable_env_checker": self.disable_env_checker, **self.gym_kwargs}
        one = freeze_after_episode_end(partial(_make_judged_at_the_end, name, **settings))
        if use_async_envs and n_envs > 1:
            vector = AsyncVectorEnv([one] * n_envs, autoreset_mode=AutoresetMode.NEXT_STEP, context="spawn")
        else:
            vector = SyncVectorEnv([one] * n_envs, autoreset_mode=AutoresetMode.NEXT_STEP)
        return {self.suite: {0: vector}}


class _JudgedAtTheEnd(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Tells of no success before the episode has ended.

    LeRobot counts an episode as a success if any step of it was one. A task that is to be done well all the time is
    judged by its mean so far, which may be high after the first step and low when the time is up.
    """

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        info["is_success"] = info["is_success"] and (terminated or truncated)
        return observation, reward, terminated, truncated, info


def _make_judged_at_the_end(name: str, **settings: Any) -> _JudgedAtTheEnd:
    return _JudgedAtTheEnd(gymnasium.make(name, **settings))


@EnvConfig.register_subclass("pixio_metaworld")
@dataclass
class PixioMetaWorldConfig(PixioEnvConfig):
    """Meta-World."""

    suite: ClassVar[str] = "metaworld"
    task: str | None = "button-press-topdown-v3"


@EnvConfig.register_subclass("pixio_adroit")
@dataclass
class PixioAdroitConfig(PixioEnvConfig):
    """Adroit's dexterous hand."""

    suite: ClassVar[str] = "adroit"
    task: str | None = "pen"


@EnvConfig.register_subclass("pixio_dmcontrol")
@dataclass
class PixioControlSuiteConfig(PixioEnvConfig):
    """The DeepMind Control Suite."""

    suite: ClassVar[str] = "dmcontrol"
    task: str | None = "walker-stand"


@EnvConfig.register_subclass("pixio_aloha")
@dataclass
class PixioAlohaConfig(PixioEnvConfig):
    """ALOHA's two arms."""

    suite: ClassVar[str] = "aloha"
    task: str | None = "transfer-cube"
