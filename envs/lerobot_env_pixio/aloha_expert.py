"""A scripted expert for the ALOHA tasks: way-points of both hands, turned into joint angles by inverse kinematics."""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's names live in a compiled module that the type checker cannot see.)

from dataclasses import dataclass, replace

import mujoco
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation, Slerp

_GRASP = np.array([0.14, 0.0, 0.0])  # metres from the hand's own frame to the point between its fingers
_OPEN, _CLOSED = 1.0, 0.0
_MEET = np.array([0.0, 0.5, 0.25])  # where the hands come together, metres in the world
_ABOVE = np.array([0.0, 0.0, 0.1])  # metres, from where a hand comes down
_LOOK = 230  # step at which both parts hang still, held out
_GAIN = 0.1  # share of what is amiss that a step of steering takes away
_FARTHEST = 0.03  # metres that steering leaves the plan for: beyond, a part has been lost
_LENGTH = 0.12  # metres, of peg and socket: where their middles are that far apart, their ends meet
_TOGETHER = 0.095  # metres between the middles of peg and socket to push for; the pin stops them at 0.1
_DAMPING = 0.03  # of the least squares: keeps steps short where the arm is stretched out
_UNTWISTED = 0.05 * (np.arange(6) == 3)  # how dear a radian of each joint is: only of the forearm's roll, see ``_Arm``


@dataclass(frozen=True, kw_only=True)
class WayPoint:
    """Where a hand is to be.

    Attributes:
        step: When, counted from the expert's first action.
        position: Of the point between the fingers, metres in the world [3].
        turn: The hand's axes in the world: x forward from the wrist, y from finger to finger.
        opening: Of the gripper, 0 to 1.
    """

    step: int
    position: NDArray[np.float64]
    turn: Rotation
    opening: float


class AlohaExpert:
    """Plays one episode by the clock, from wherever the arms are when it is first asked.

    Args:
        model: The compiled scene.
        data: Its state, which is only read.
        insertion: Peg and socket, or else the cube.
    """

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, *, insertion: bool) -> None:
        self._data, self._insertion, self._step = data, insertion, 0
        self._arms = {side: _Arm(model, data, side) for side in ("left", "right")}
        self._plans: dict[str, list[WayPoint]] = {}
        self._aside = np.zeros(3)  # how far the right hand is steered off its plan, metres

    def action(self) -> NDArray[np.float64]:
        """Give the next action [14]; every call is one step of the plan."""
        if not self._plans:
            begin = {side: arm.pose() for side, arm in self._arms.items()}
            self._plans = self._plan_insertion(begin) if self._insertion else self._plan_transfer(begin)
        if self._insertion and self._step == _LOOK:
            self._push_in()
        if self._insertion and self._step >= _LOOK:
            self._steer()
        left = self._arms["left"].follow(self._plans["left"], self._step)
        right = self._arms["right"].follow(self._plans["right"], self._step, aside=self._aside)
        self._step += 1
        return np.concatenate([left, right])

    def _plan_transfer(self, begin: dict[str, WayPoint]) -> dict[str, list[WayPoint]]:
        """The right hand brings the cube; the left takes it from the side, its fingers above and below."""
        cube = np.append(self._data.body("box").xpos[:2], 0.02)
        down, across = _turn("right", pitch=60), _turn("left", pitch=0, roll=90)
        aside, back = np.array([0.12, 0, 0]), np.array([-0.08, 0, 0])
        right = [
            begin["right"],
            WayPoint(step=60, position=cube + _ABOVE, turn=down, opening=_OPEN),
            WayPoint(step=100, position=cube, turn=down, opening=_OPEN),
            WayPoint(step=125, position=cube, turn=down, opening=_CLOSED),
            WayPoint(step=190, position=_MEET, turn=down, opening=_CLOSED),
            WayPoint(step=270, position=_MEET, turn=down, opening=_CLOSED),
            WayPoint(step=290, position=_MEET, turn=down, opening=_OPEN),
            WayPoint(step=330, position=_MEET + aside, turn=down, opening=_OPEN),
        ]
        left = [
            begin["left"],
            WayPoint(step=120, position=_MEET - aside, turn=across, opening=_OPEN),
            WayPoint(step=190, position=_MEET - aside, turn=across, opening=_OPEN),
            WayPoint(step=235, position=_MEET, turn=across, opening=_OPEN),
            WayPoint(step=265, position=_MEET, turn=across, opening=_CLOSED),
            WayPoint(step=295, position=_MEET, turn=across, opening=_CLOSED),
            WayPoint(step=335, position=_MEET + back, turn=across, opening=_CLOSED),
        ]
        return {"left": left, "right": right}

    def _plan_insertion(self, begin: dict[str, WayPoint]) -> dict[str, list[WayPoint]]:
        """Each hand lifts its part by the middle and holds it out, a hand's breadth from the other."""
        plans = {}
        for side, part, height in (("left", "socket", 0.022), ("right", "peg", 0.01)):
            outward = np.array([0.11 if side == "right" else -0.11, 0, 0])
            here = np.append(self._data.body(part).xpos[:2], height)
            down = _turn(side, pitch=60)
            plans[side] = [
                begin[side],
                WayPoint(step=60, position=here + _ABOVE, turn=down, opening=_OPEN),
                WayPoint(step=100, position=here, turn=down, opening=_OPEN),
                WayPoint(step=125, position=here, turn=down, opening=_CLOSED),
                WayPoint(step=200, position=_MEET + outward, turn=down, opening=_CLOSED),
                WayPoint(step=_LOOK, position=_MEET + outward, turn=down, opening=_CLOSED),
            ]
        return plans

    def _push_in(self) -> None:
        """Extend the plans: the hands come together, not before the peg is on the socket's axis."""
        gap = self._data.body("peg").xpos[0] - self._data.body("socket").xpos[0]
        for side, plan in self._plans.items():
            outward = 1 if side == "right" else -1
            inward = np.array([-outward * (gap - _TOGETHER) / 2, 0, 0])
            wait = replace(plan[-1], step=_LOOK + 30)
            plan += [wait, replace(wait, step=_LOOK + 130, position=wait.position + inward)]

    def _steer(self) -> None:
        """Move the right hand a little to where the peg is on the socket's axis: how parts lie in hands varies."""
        gap = self._data.body("peg").xpos - self._data.body("socket").xpos
        if gap[0] > _LENGTH:  # from there on the socket leads the peg
            self._aside[1:] = np.clip(self._aside[1:] - _GAIN * gap[1:], -_FARTHEST, _FARTHEST)


class _Arm:
    """One arm: from a pose of its hand to its joint angles, by damped least squares on a copy of the state.

    With the wrist straight, forearm and hand roll about one axis, and as the wrist passes there, the forearm may as
    well stay or make half a turn either way. It is kept from turning, so that all demonstrations show the same way.
    """

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, side: str) -> None:
        self._model, self._data, self._trial = model, data, mujoco.MjData(model)
        names = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
        joints = [model.joint(f"vx300s_{side}/{name}") for name in names]
        self._angles = np.array([joint.qposadr[0] for joint in joints])
        self._columns = np.array([joint.dofadr[0] for joint in joints])
        self._low, self._high = np.array([joint.range for joint in joints]).T
        self._hand = model.body(f"vx300s_{side}/gripper_link").id
        self._solution = data.qpos[self._angles].copy()

    def pose(self) -> WayPoint:
        """Give where the hand is now, as the beginning of a plan; solutions start there, too."""
        self._solution = self._data.qpos[self._angles].copy()
        turn = Rotation.from_matrix(self._data.xmat[self._hand].reshape(3, 3))
        return WayPoint(step=0, position=self._data.xpos[self._hand] + turn.apply(_GRASP), turn=turn, opening=_CLOSED)

    def follow(
        self, plan: list[WayPoint], step: int, *, aside: NDArray[np.float64] | None = None
    ) -> NDArray[np.float64]:
        """Give six angles and an opening [7] for a step of a plan; after its end, for its last way-point."""
        times = [point.step for point in plan]
        now = min(step, times[-1])
        later = min(int(np.searchsorted(times, now, side="right")), len(plan) - 1)
        one, two = plan[later - 1], plan[later]
        share = (now - one.step) / (two.step - one.step)
        position = one.position + share * (two.position - one.position) + (0 if aside is None else aside)
        turn = Slerp([0, 1], Rotation.concatenate([one.turn, two.turn]))(share)
        return np.append(self._solve(position, turn), one.opening + share * (two.opening - one.opening))

    def _solve(self, position: NDArray[np.float64], turn: Rotation) -> NDArray[np.float64]:
        """Give the angles [6] that bring the point between the fingers there; the last solution is where it starts."""
        trial, angles = self._trial, self._solution
        moved, turned = np.zeros((3, self._model.nv)), np.zeros((3, self._model.nv))
        for _ in range(20):
            trial.qpos[self._angles] = angles
            mujoco.mj_kinematics(self._model, trial)
            mujoco.mj_comPos(self._model, trial)
            actual = Rotation.from_matrix(trial.xmat[self._hand].reshape(3, 3))
            point = trial.xpos[self._hand] + actual.apply(_GRASP)
            missing = np.concatenate([position - point, 0.3 * (turn * actual.inv()).as_rotvec()])
            mujoco.mj_jac(self._model, trial, moved, turned, point, self._hand)
            slope = np.concatenate([moved[:, self._columns], 0.3 * turned[:, self._columns]])
            normal = slope.T @ slope + np.diag(_DAMPING**2 + _UNTWISTED**2)
            change = np.linalg.solve(normal, slope.T @ missing - _UNTWISTED**2 * angles)
            if np.abs(change).max() < 1e-4:
                break
            angles = np.clip(angles + change, self._low, self._high)
        self._solution = angles
        return angles


def _turn(side: str, *, pitch: float, roll: float = 0.0) -> Rotation:
    """Give a hand's axes: forward is to the other arm, ``pitch`` degrees down from there, then rolled about itself."""
    forward = Rotation.from_euler("z", 0 if side == "left" else 180, degrees=True)
    return forward * Rotation.from_euler("YX", [pitch, roll], degrees=True)
