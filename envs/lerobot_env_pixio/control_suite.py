"""Five tasks of the DeepMind Control Suite, from dm-control 1.0 (https://github.com/google-deepmind/dm_control).

Each step is one of the suite's own control steps, without action repeat, and earns from 0 to 1; an episode of 1,000
steps earns 1,000 at most. These tasks have no moment of success: the return is the number to report. See `Task` for
the share of it that counts as a success.
"""

from typing import Any, cast

import numpy as np
from dm_control import suite
from dm_control.rl.control import Environment
from numpy.typing import NDArray

from lerobot_env_pixio.joints import JointSimulation
from lerobot_env_pixio.simulation import Ground

# Beside the track, which is 1.6 m wide, in lots of 2 m so that a runner keeps passing something.
_TRACK = tuple(Ground(low=(x, 0.45), high=(x + 2, 0.7), level=0.0, largest=0.1) for x in range(-1, 25, 2))
_GROUNDS = {
    "walker": _TRACK,
    "cheetah": _TRACK,
    "finger": (Ground(low=(-0.5, 0.12), high=(0.5, 0.18), level=0.0, largest=0.02),),
    "reacher": (Ground(low=(-0.27, 0.25), high=(0.27, 0.27), level=0.0, largest=0.015),),
}


class ControlSuiteSimulation(JointSimulation):
    """One task of the suite, named ``<domain>-<task>``. Its attributes are those of `Simulation`.

    A position [a] is that of the driven joints alone: where the body is and how it lies has to be seen, and how fast
    it moves needs more than one picture.
    """

    def __init__(self, task: str) -> None:
        domain, _, name = task.partition("-")
        loaded = suite.load(domain, name, task_kwargs={"random": 0, "time_limit": float("inf")})
        self._env = cast(Environment, loaded)
        physics = cast(Any, self._env.physics)
        super().__init__("dmcontrol", physics.model.ptr, physics.data.ptr)
        self.action_low, self.action_high = self.model.actuator_ctrlrange.T.astype(np.float32)
        self.grounds = _GROUNDS[domain]

    def reset(self, seed: int) -> None:
        """Draw a new scene: equal seeds give equal scenes, whatever went before."""
        cast(Any, self._env.task).random.seed(seed)
        self._observation = self._env.reset().observation

    def step(self, action: NDArray[np.float32]) -> tuple[float, bool]:
        """Apply torques (action [a]); give reward and that nothing has succeeded yet."""
        step = self._env.step(action)
        self._observation = step.observation
        return float(step.reward or 0.0), False

    def state(self) -> NDArray[np.float32]:
        """Give the suite's own observation, its parts one after the other: poses, velocities, and the target if any."""
        return np.concatenate([np.ravel(part) for part in self._observation.values()], dtype=np.float32)
