"""An environment whose observations hold the frames before the present, for policies that read motion."""

from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lerobot_env_pixio import ManipulationEnv, make_env
from lerobot_env_pixio.environment import Observation

EARLIER = "earlier."
"""Before a camera's name: the key of its past frames, uint8 [t h w 3], oldest first."""


class RememberingEnv:
    """A ``ManipulationEnv`` that shows the last few frames it was looked at; before the first, there is the first.

    Frames are those of consecutive steps if actions are taken one by one. The present stays where it was, so films of
    episodes look as they always do.

    Args:
        env: The environment.
        steps: How many frames are shown of each camera, the present included.
    """

    def __init__(self, env: ManipulationEnv, *, steps: int) -> None:
        self._env = env
        self._seen: deque[dict[str, NDArray[np.uint8]]] = deque(maxlen=steps)
        self.settings = env.settings | {"history": steps}

    def __getattr__(self, name: str) -> Any:
        """Everything else is the environment's."""
        return getattr(self._env, name)

    def reset(self, **options: Any) -> tuple[Observation, dict[str, Any]]:
        """Start an episode and forget the last one."""
        observation, info = self._env.reset(**options)
        self._seen.extend([observation["pixels"]] * (self._seen.maxlen or 0))
        return self._recall(observation), info

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Take one action [a] and look."""
        return self.advance(np.asarray(action)[None])

    def advance(self, actions: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Take a chunk of actions [k a] and look once."""
        observation, *outcome = self._env.advance(actions)
        self._seen.append(observation["pixels"])
        return self._recall(observation), *outcome  # type: ignore[return-value]

    def _recall(self, observation: Observation) -> Observation:
        *past, _ = self._seen
        return observation | {
            f"{EARLIER}{name}": np.stack([frame[name] for frame in past]) for name in observation["pixels"]
        }


def make_remembering(suite: str, task: str, *, steps: int, **settings: Any) -> Any:
    """Make the environment of a task, as ``make_env`` does, with a memory of ``steps`` frames."""
    return RememberingEnv(make_env(suite, task, **settings), steps=steps)
