"""The driven joints of a robot, by name: what it knows of itself where its suite gives no other answer."""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's names live in a compiled module that the type checker cannot see.)

import mujoco
import numpy as np
from numpy.typing import NDArray


class DrivenJoints:
    """Every joint that an actuator drives, in the order of the actuators: so numbers of actions and positions match.

    Args:
        model: The MuJoCo model; each of its actuators drives one hinge or slide.

    Attributes:
        names: Joint names.
        low: Smallest position, float32 [a]: the joint's own limit, or -pi for one that turns without end.
        high: Largest position, float32 [a].
    """

    def __init__(self, model: mujoco.MjModel) -> None:
        joints = model.actuator_trnid[:, 0]
        self.names = tuple(model.joint(joint).name for joint in joints)
        self._addresses = model.jnt_qposadr[joints]
        self._endless = model.jnt_limited[joints] == 0
        limits = np.where(self._endless[:, None], (-np.pi, np.pi), model.jnt_range[joints]).astype(np.float32)
        self.low, self.high = limits.T.copy()

    def position(self, data: mujoco.MjData) -> NDArray[np.float32]:
        """Give their positions [a] in radians or metres, inside the limits, which MuJoCo's joints overstep a little."""
        position = data.qpos[self._addresses]
        turns = np.round(position / (2 * np.pi)) * self._endless
        return np.clip(position - 2 * np.pi * turns, self.low, self.high, dtype=np.float32)
