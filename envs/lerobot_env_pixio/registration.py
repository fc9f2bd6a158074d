"""What ``gymnasium.make`` and ``gymnasium.make_vec`` make: environments whose time limit is gymnasium's own."""

from typing import Any

import gymnasium
from gymnasium.utils import RecordConstructorArgs

from lerobot_env_pixio.environment import ManipulationEnv, make_env
from lerobot_env_pixio.tasks import find_task
from pixio_robot.errors import SettingError


def make_registered(
    suite: str, task: str, *, render_mode: str | None = "rgb_array", **settings: Any
) -> ManipulationEnv:
    """Make the environment of a task with no time limit but the physics' horizon: gymnasium puts its own around it.

    Args:
        suite: A key of ``TASKS``.
        task: A task of that suite.
        render_mode: "rgb_array"; with None, ``render`` gives the same pictures.
        **settings: Further arguments of ``make_env``, but ``max_episode_steps``.

    Raises:
        UnknownNameError: A name that nothing answers to; carries the nearest one.
        SettingError: Another mode, or whatever else ``make_env`` refuses.
    """
    if render_mode not in ("rgb_array", None):
        raise SettingError(f"render_mode={render_mode!r}: choose 'rgb_array', or leave it out for the same.")
    return make_env(suite, task, max_episode_steps=find_task(suite, task).horizon, **settings)


class WithinHorizon(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Refuses a time limit beyond the physics' horizon: gymnasium tells nobody else what it was asked for.

    Args:
        env: The environment, in gymnasium's time limit if it has one.

    Raises:
        SettingError: The limit is beyond the horizon.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)  # lets gymnasium make the environment again from its specification
        super().__init__(env)
        inner: Any = env.unwrapped
        limit: int = env.get_wrapper_attr("_max_episode_steps")
        if limit > inner.max_episode_steps:
            raise SettingError(
                f"max_episode_steps={limit}: {inner.task} runs from 1 to {inner.max_episode_steps} steps."
            )
