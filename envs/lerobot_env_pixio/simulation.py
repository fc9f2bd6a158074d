"""What a suite has to bring: physics without pictures."""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's names live in a compiled module that the type checker cannot see.)

from dataclasses import dataclass
from typing import Protocol

import mujoco
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Ground:
    """A flat rectangle that cameras see and the task leaves free: where distractors may stand.

    Attributes:
        low: Smallest x and y in the world, metres.
        high: Largest x and y.
        level: Its height z, metres.
        largest: Radius of the largest thing that may stand there, metres.
    """

    low: tuple[float, float]
    high: tuple[float, float]
    level: float
    largest: float


class Simulation(Protocol):
    """One task of a suite: physics without pictures, and an expert where there is one.

    Attributes:
        model: The compiled scene.
        data: Its present state.
        action_low: Smallest action, float32 [a].
        action_high: Largest action, float32 [a].
        noise: What noise of strength 1 adds to each number of an action, float64 [a].
        rest: The action that keeps the robot about where an episode starts, float64 [a].
        position_low: Smallest position, float32 [a].
        position_high: Largest position, float32 [a].
        axes: What the numbers of an action, and of a position, stand for.
        grounds: Where distractors may stand.
    """

    model: mujoco.MjModel
    data: mujoco.MjData
    action_low: NDArray[np.float32]
    action_high: NDArray[np.float32]
    noise: NDArray[np.float64]
    rest: NDArray[np.float64]
    position_low: NDArray[np.float32]
    position_high: NDArray[np.float32]
    axes: tuple[str, ...]
    grounds: tuple[Ground, ...]

    def reset(self, seed: int) -> None:
        """Draw a new scene, fixed by the seed alone."""
        ...

    def step(self, action: NDArray[np.float32]) -> tuple[float, bool]:
        """Take one action [a]; give reward and success."""
        ...

    def passed(self) -> int:
        """Count how many of the task's milestones, the first ones, stand passed now."""
        ...

    def position(self) -> NDArray[np.float32]:
        """Give what the robot knows of itself [a]."""
        ...

    def state(self) -> NDArray[np.float32]:
        """Give what the suite's library itself observes of the whole scene, objects and goal included [s]."""
        ...

    def expert_action(self) -> NDArray[np.float32]:
        """Give the scripted expert's next action [a], inside the limits.

        Raises:
            SettingError: The suite has no expert.
        """
        ...
