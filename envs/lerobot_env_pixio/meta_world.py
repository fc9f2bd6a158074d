"""The physics and the scripted experts of Meta-World 3.0.0 (https://github.com/Farama-Foundation/Metaworld, MIT).

Three of its habits are put right here: scenes follow the seed given to ``reset``, the cameras that hang upside down
are rolled upright in the model, and the experts' warnings about large steps are silenced.
"""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's names live in a compiled module that the type checker cannot see.)

import warnings
from typing import Any, cast

import mujoco
import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE
from metaworld.policies import ENV_POLICY_MAP
from metaworld.sawyer_xyz_env import SawyerXYZEnv
from numpy.typing import NDArray

from lerobot_env_pixio.simulation import Ground

_CORNER2_POSITION = (0.75, 0.075, 0.7)  # metres; where LeRobot puts it, closer to the table than Meta-World does
_UPSIDE_DOWN = ("corner", "corner2", "corner3")
_OBJECT = slice(4, 7)  # the object's place among what is observed
_MOVED, _LIFTED = 0.02, 0.03  # metres; objects tilt and settle by less
_HALF_TURN = np.array([0.0, 0.0, 0.0, 1.0])  # quaternion: 180 degrees about the optical axis


class MetaWorldSimulation:
    """One Meta-World task: a Sawyer arm whose gripper is moved by displacement, 80 steps per second.

    Attributes:
        model: The compiled scene.
        data: Its present state.
    """

    axes = ("x", "y", "z", "gripper")
    """What the four numbers of an action, and of a position, stand for."""
    action_low, action_high = np.full(4, -1, np.float32), np.full(4, 1, np.float32)
    noise, rest = np.ones(4), np.zeros(4)
    # The table's top, at height 0, less what the hand can reach.
    grounds = (
        Ground(low=(-0.62, 0.35), high=(-0.42, 0.92), level=0.0, largest=0.05),
        Ground(low=(0.42, 0.35), high=(0.62, 0.92), level=0.0, largest=0.05),
    )
    position_low = np.append(SawyerXYZEnv._HAND_SPACE.low, 0).astype(np.float32)
    position_high = np.append(SawyerXYZEnv._HAND_SPACE.high, 1).astype(np.float32)

    def __init__(self, task: str) -> None:
        self._task = task
        classes = cast(dict[str, Any], ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE)
        self._env = classes[f"{task}-goal-observable"](seed=0)
        self._env._freeze_rand_vec = False  # else the scene never changes
        self._env.seeded_rand_vec = True  # else it follows numpy's global generator
        self.model: mujoco.MjModel = self._env.model
        self.data: mujoco.MjData = self._env.data
        self.model.camera("corner2").pos = _CORNER2_POSITION
        for name in _UPSIDE_DOWN:
            camera = self.model.camera(name)
            mujoco.mju_mulQuat(camera.quat, camera.quat.copy(), _HALF_TURN)

    def reset(self, seed: int) -> None:
        """Draw a new scene: equal seeds give equal scenes, whatever went before."""
        self._env.seed(seed)
        self._observation, _ = self._env.reset()
        self._expert = ENV_POLICY_MAP[self._task]()
        self._start = self._observation[_OBJECT].copy()

    def step(self, action: NDArray[np.float32]) -> tuple[float, bool]:
        """Move the hand by up to 1 cm along x, y, z and drive the fingers (action [4]); give reward and success."""
        self._observation, reward, _, _, info = self._env.step(action)
        return float(reward), bool(info["success"])

    def passed(self) -> int:
        """Count milestones: 1 if the object is elsewhere than it started from, 2 if it is higher."""
        way = self._observation[_OBJECT] - self._start
        return 2 if way[2] > _LIFTED else int(np.linalg.norm(way) > _MOVED)

    def position(self) -> NDArray[np.float32]:
        """Give the hand's x, y, z in metres, and the gripper's opening from 0 to 1: [4]."""
        return np.clip(self._observation[:4], self.position_low, self.position_high, dtype=np.float32)

    def state(self) -> NDArray[np.float32]:
        """Give Meta-World's full observation [39]: hand, gripper, objects, the same one step ago, goal; metres."""
        return self._observation.astype(np.float32)

    def expert_action(self) -> NDArray[np.float32]:
        """Give what the scripted expert, which sees the full state, would do now [4], inside the action limits."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"Constant\(s\) may be too high")
            action = self._expert.get_action(self._observation)
        return np.clip(action, self.action_low, self.action_high).astype(np.float32)
