"""Two arms that work together: the tasks of gym-aloha 0.1 (https://github.com/huggingface/gym-aloha, Apache-2.0).

Scenes, scene draws and rewards are the library's. Three of its habits are put right here: nothing is rendered that
nobody looks at (its own ``step`` renders three pictures of 480 x 640), two environments in one process do not share
their scene, and the action space is the one that the joints have.

Success is stricter than the library's reward of 4, which a finger that brushes the object can earn. The cube has to be
held by the left hand alone, by both of its fingers; the peg has to stick in the socket, one hand on each; and either
has to last, clear of the table: for 25 of 30 steps, since a finger of a hand that moves may lose touch for a moment.
"""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's names live in a compiled module that the type checker cannot see.)

from collections import deque
from typing import Any, cast

import mujoco
import numpy as np
from dm_control.mujoco import Physics, wrapper
from gym_aloha.constants import ASSETS_DIR, DT, JOINTS, START_ARM_POSE, normalize_puppet_gripper_position
from gym_aloha.tasks import sim
from gym_aloha.utils import sample_box_pose, sample_insertion_pose
from numpy.typing import NDArray

from lerobot_env_pixio.aloha_expert import AlohaExpert
from lerobot_env_pixio.simulation import Ground

_TASKS = {"transfer-cube": sim.TransferCubeTask, "insertion": sim.InsertionTask}
_SCENES = {"transfer-cube": "bimanual_viperx_transfer_cube.xml", "insertion": "bimanual_viperx_insertion.xml"}
_HELD, _WATCHED = 25, 30  # steps, about half a second
_INSIDE = 0.015  # metres that the peg has to reach into the socket; it meets the pin at 0.02
_GRIPPERS = (6, 13)  # among the numbers of an action, and of a position
_SIDES = ("left", "right")


class AlohaSimulation:
    """One ALOHA task, 50 steps per second. Its attributes are those of `Simulation`.

    An action [14] is six joint angles in radians and an opening from 0 to 1 for the left arm, and the same for the
    right; they are targets, not changes. A position [14] is the same, measured.
    """

    axes = tuple(JOINTS)
    # The table behind the arms' common space, as the cameras see it. Its top is at height 0.
    grounds = (Ground(low=(-0.35, 0.78), high=(0.35, 0.92), level=0.0, largest=0.04),)

    def __init__(self, task: str) -> None:
        self._physics = Physics.from_model(wrapper.MjModel(_compile(ASSETS_DIR / _SCENES[task])))
        self._insertion, self._task = task == "insertion", _TASKS[task]()
        self.model: mujoco.MjModel = self._physics.model.ptr
        self.data: mujoco.MjData = self._physics.data.ptr
        limits = np.delete(self.model.actuator_ctrlrange, (7, 15), axis=0)  # the second finger mirrors the first
        is_gripper = np.isin(np.arange(14), _GRIPPERS)
        low, high = np.where(is_gripper[:, None], (0, 1), limits).T.astype(np.float32)
        self.action_low, self.action_high = low, high
        self.position_low, self.position_high = self.action_low, self.action_high
        # Radians, and share of a gripper's way. Of strength 0.1, that moves a hand by about a millimetre, as elsewhere;
        # more shakes the parts out of it.
        self.noise = np.full(14, 0.02)
        pose = np.delete(np.array(START_ARM_POSE, float), (7, 15))
        self.rest = np.where(is_gripper, normalize_puppet_gripper_position(pose), pose)

    def reset(self, seed: int) -> None:
        """Draw a new scene: equal seeds give equal scenes, whatever went before."""
        # The library's tasks take the scene from a global variable, which is read before anybody else can change it.
        cast(Any, sim.BOX_POSE)[0] = (
            np.concatenate(sample_insertion_pose(seed)) if self._insertion else sample_box_pose(seed)
        )
        with self._physics.reset_context():
            self._task.initialize_episode(self._physics)
        self._solved = deque([False] * _WATCHED, maxlen=_WATCHED)
        self._reward = 0.0
        self._expert = AlohaExpert(self.model, self.data, insertion=self._insertion)

    def step(self, action: NDArray[np.float32]) -> tuple[float, bool]:
        """Drive every joint to its target (action [14]); give the library's reward of 0 to 4, and success."""
        self._task.before_step(np.asarray(action, np.float64), self._physics)
        self._physics.step(round(DT / self.model.opt.timestep))
        self._solved.append(self._peg_is_in() if self._insertion else self._cube_is_passed())
        self._reward = float(self._task.get_reward(self._physics))
        return self._reward, sum(self._solved) >= _HELD

    def passed(self) -> int:
        """Count milestones: the library's reward stands for them."""
        return int(self._reward)

    def position(self) -> NDArray[np.float32]:
        """Give joint angles in radians and openings from 0 to 1: [14]."""
        position = self._task.get_qpos(self._physics)
        return np.clip(position, self.position_low, self.position_high, dtype=np.float32)

    def state(self) -> NDArray[np.float32]:
        """Give `position` [14] and each object's place in metres and orientation as a quaternion, 7 numbers apiece."""
        return np.concatenate([self.position(), self._task.get_env_state(self._physics)], dtype=np.float32)

    def expert_action(self) -> NDArray[np.float32]:
        """Give what the scripted expert, which sees where everything is, would do now [14]. Ask it once per step."""
        return np.clip(self._expert.action(), self.action_low, self.action_high).astype(np.float32)

    def _cube_is_passed(self) -> bool:
        touching = self._contacts("red_box")
        return _fingers("left") <= touching and not _fingers("right") & touching and "table" not in touching

    def _peg_is_in(self) -> bool:
        peg = self._contacts("red_peg")
        socket = set().union(*(self._contacts(f"socket-{number}") for number in range(1, 5)))
        held = _fingers("right") <= peg and _fingers("left") <= socket and "table" not in peg | socket
        return held and self._depth() >= _INSIDE

    def _depth(self) -> float:
        """How far the peg's tip is behind the socket's mouth, metres; below 0 outside, or where it is off the axis."""
        peg, socket = self.data.body("peg"), self.data.body("socket")
        half = self.model.geom("red_peg").size[0]
        tip = peg.xpos - half * peg.xmat.reshape(3, 3)[:, 0]
        along, *aside = socket.xmat.reshape(3, 3).T @ (tip - socket.xpos)  # in the socket's own axes
        return float(half - along) if np.abs(aside).max() < 0.018 else -1.0

    def _contacts(self, geom: str) -> set[str]:
        """Give the names of the geoms that touch one."""
        wanted, contacts = self.model.geom(geom).id, self.data.contact.geom
        others = contacts[(contacts == wanted).any(axis=1)]
        return {self.model.geom(other).name for other in others[others != wanted]}


def _fingers(side: str) -> set[str]:
    return {f"vx300s_{side}/10_{finger}_gripper_finger" for finger in _SIDES}


def _compile(path: Any) -> mujoco.MjModel:
    """Compile a scene, its table wearing a plain texture: nothing else here has one that a visual shift could paint."""
    spec = mujoco.MjSpec.from_file(str(path))
    side = 256
    plain = spec.add_texture(name="table", type=mujoco.mjtTexture.mjTEXTURE_2D, width=side, height=side, nchannel=3)
    plain.data = bytes([255]) * (side * side * 3)
    wood = spec.add_material(name="table", rgba=spec.geom("table").rgba, texrepeat=[2, 2])
    wood.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = "table"
    spec.geom("table").material, spec.geom("table").rgba = "table", [0.5, 0.5, 0.5, 1]  # the grey that lets it show
    model = spec.compile()
    _screw_on(model)
    return model


def _screw_on(model: mujoco.MjModel) -> None:
    """Fix every camera to its body as it is at rest.

    The library has them aim at a body, with the world's z for up: one that looks straight down, as a wrist's may, then
    turns round with the least step aside, no turn of its own has any effect, and front_close follows the left hand.
    """
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    for camera, body in enumerate(model.cam_bodyid):
        inverse, aimed = np.empty(4), np.empty(4)
        mujoco.mju_negQuat(inverse, data.xquat[body])
        mujoco.mju_mat2Quat(aimed, data.cam_xmat[camera])
        mujoco.mju_mulQuat(model.cam_quat[camera], inverse, aimed)
    model.cam_mode[:] = mujoco.mjtCamLight.mjCAMLIGHT_FIXED
