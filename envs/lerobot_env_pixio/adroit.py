"""The dexterous tasks of Adroit, from gymnasium-robotics 1.4 (https://robotics.farama.org/envs/adroit_hand, MIT).

A five-fingered hand of 24 joints, on an arm of up to six, each driven to a target position 100 times per second.
Success is what the suite's authors count (Rajeswaran et al. 2018, https://arxiv.org/abs/1709.10087): the goal held
for more than 20 steps of an episode with the pen, and for more than 25 in the other tasks. The library's own flag,
which is true already when the pen swings through its target, is not enough.
"""

import contextlib
import io

import numpy as np
from numpy.typing import NDArray

from lerobot_env_pixio.joints import JointSimulation
from lerobot_env_pixio.simulation import Ground

with contextlib.redirect_stderr(io.StringIO()):  # prints a long note on how rewards once changed
    from gymnasium_robotics.envs.adroit_hand.adroit_door import AdroitHandDoorEnv
    from gymnasium_robotics.envs.adroit_hand.adroit_hammer import AdroitHandHammerEnv
    from gymnasium_robotics.envs.adroit_hand.adroit_pen import AdroitHandPenEnv
    from gymnasium_robotics.envs.adroit_hand.adroit_relocate import AdroitHandRelocateEnv

_ENVIRONMENTS = {
    "pen": AdroitHandPenEnv,
    "relocate": AdroitHandRelocateEnv,
    "door": AdroitHandDoorEnv,
    "hammer": AdroitHandHammerEnv,
}
_HELD = {"pen": 20, "relocate": 25, "door": 25, "hammer": 25}
"""Steps at the goal that an episode must exceed."""


class AdroitSimulation(JointSimulation):
    """One Adroit task. Its attributes are those of `Simulation`; an action is a share of each joint's range."""

    # The table is 0.9 m square about the origin, its top at height 0; the hand comes from negative y.
    grounds = (
        Ground(low=(-0.42, -0.1), high=(-0.3, 0.4), level=0.0, largest=0.03),
        Ground(low=(0.3, -0.1), high=(0.42, 0.4), level=0.0, largest=0.03),
    )

    def __init__(self, task: str) -> None:
        self._env = _ENVIRONMENTS[task]()
        self._needed = _HELD[task]
        super().__init__("adroit", self._env.model, self._env.data)
        count = len(self.axes)
        self.action_low, self.action_high = np.full(count, -1, np.float32), np.full(count, 1, np.float32)

    def reset(self, seed: int) -> None:
        """Draw a new scene: equal seeds give equal scenes, whatever went before."""
        self._observation, _ = self._env.reset(seed=seed)
        self._held = 0

    def step(self, action: NDArray[np.float32]) -> tuple[float, bool]:
        """Drive every joint to its target (action [a]); give reward and success."""
        self._observation, reward, _, _, info = self._env.step(action)
        self._held += bool(info["success"])
        return float(reward), self._held > self._needed

    def state(self) -> NDArray[np.float32]:
        """Give the library's observation, 39 to 46 numbers: joints, and where object and goal are to each other."""
        return self._observation.astype(np.float32)
