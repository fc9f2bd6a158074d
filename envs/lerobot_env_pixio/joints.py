"""A robot that is known by its driven joints: what the suites without an expert have in common."""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's names live in a compiled module that the type checker cannot see.)

import mujoco
import numpy as np
from numpy.typing import NDArray

from lerobot_env_pixio.suites import refuse_without_expert


class JointSimulation:
    """A ``Simulation`` less its scenes and steps: what it knows of itself are the joints that an actuator drives.

    They come in the order of the actuators, so that numbers of actions and positions match. A joint's limits are its
    own, or -pi to pi for one that turns without end.

    Args:
        suite: A key of ``SUITES``, which has no expert.
        model: The MuJoCo model; each of its actuators drives one hinge or slide.
        data: Its state.
    """

    def __init__(self, suite: str, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        self._suite, self.model, self.data = suite, model, data
        joints = model.actuator_trnid[:, 0]
        self.axes = tuple(model.joint(joint).name for joint in joints)
        self._addresses = model.jnt_qposadr[joints]
        self._endless = model.jnt_limited[joints] == 0
        limits = np.where(self._endless[:, None], (-np.pi, np.pi), model.jnt_range[joints]).astype(np.float32)
        self.position_low, self.position_high = limits.T.copy()
        self.noise, self.rest = np.ones(len(joints)), np.zeros(len(joints))

    def position(self) -> NDArray[np.float32]:
        """Give the joints' positions [a] in radians or metres, inside the limits, which MuJoCo oversteps a little."""
        position = self.data.qpos[self._addresses]
        turns = np.round(position / (2 * np.pi)) * self._endless
        return np.clip(position - 2 * np.pi * turns, self.position_low, self.position_high, dtype=np.float32)

    def passed(self) -> int:
        """No milestones are known of these suites."""
        return 0

    def expert_action(self) -> NDArray[np.float32]:
        """There is no scripted expert.

        Raises:
            SettingError: Always.
        """
        refuse_without_expert(self._suite)
        raise AssertionError
