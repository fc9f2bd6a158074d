"""Visual changes of a scene: lights, colours and cameras are redrawn for every episode; the physics stay."""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's names live in a compiled module that the type checker cannot see.)

from dataclasses import dataclass

import mujoco
import numpy as np

from pixio_robot.errors import UnknownNameError


@dataclass(frozen=True, kw_only=True, slots=True)
class ShiftLevel:
    """How far a scene may stray from its own looks.

    Attributes:
        light: Largest relative change of a lamp's strength.
        lamp: Largest displacement of a lamp, metres.
        color: Share of each surface's colour that is replaced by a random one, at most.
        camera: Largest displacement of a camera along each axis, metres; one on the hand moves a tenth of it.
        angle: Largest turn of a camera, degrees; one on the hand turns as far.
        zoom: Largest relative change of a camera's field of view.
    """

    light: float
    lamp: float
    color: float
    camera: float
    angle: float
    zoom: float


SHIFTS = {
    "mild": ShiftLevel(light=0.3, lamp=0.3, color=0.15, camera=0.02, angle=1.5, zoom=0.02),
    "strong": ShiftLevel(light=0.7, lamp=1.0, color=0.6, camera=0.08, angle=6.0, zoom=0.1),
}

_VISUAL = ("light_diffuse", "light_pos", "mat_rgba", "geom_rgba", "cam_pos", "cam_quat", "cam_fovy")


class VisualShift:
    """Redraws the looks of one model in place, always from the looks that it had at the start.

    Args:
        model: The MuJoCo model.
        level: A key of ``SHIFTS``.

    Raises:
        UnknownNameError: No such level.
    """

    def __init__(self, model: mujoco.MjModel, level: str) -> None:
        if level not in SHIFTS:
            raise UnknownNameError("shift", level, SHIFTS)
        self._model, self._level = model, SHIFTS[level]
        self._base = {name: getattr(model, name).copy() for name in _VISUAL}
        self._headlight = model.vis.headlight.diffuse.copy()
        # A geom wears its material's colour only as long as its own is the default grey, which must stay then.
        self._painted = ~((model.geom_matid >= 0) & np.all(model.geom_rgba == (0.5, 0.5, 0.5, 1), axis=1))

    def redraw(self, random: np.random.Generator) -> None:
        """Draw new looks. Call ``mj_forward`` afterwards: poses of lamps and cameras are computed there."""
        model, level = self._model, self._level
        for name, values in self._base.items():
            getattr(model, name)[:] = values
        strength = random.uniform(1 - level.light, 1 + level.light, size=(model.nlight + 1, 1))
        model.light_diffuse[:] *= strength[1:]
        model.vis.headlight.diffuse = self._headlight * strength[0]
        model.light_pos[:] += random.uniform(-level.lamp, level.lamp, size=model.light_pos.shape)
        for colors, painted in ((model.mat_rgba, slice(None)), (model.geom_rgba, self._painted)):
            share = random.uniform(0, level.color, size=(len(colors), 1))
            colors[painted, :3] += (share * (random.uniform(size=(len(colors), 3)) - colors[:, :3]))[painted]
        self._move_cameras(random)

    def _move_cameras(self, random: np.random.Generator) -> None:
        model, level = self._model, self._level
        model.cam_fovy[:] *= random.uniform(1 - level.zoom, 1 + level.zoom, size=model.ncam)
        on_hand = model.cam_bodyid > 0
        reach = np.where(on_hand, level.camera / 10, level.camera)[:, None]
        model.cam_pos[:] += random.uniform(-reach, reach, size=model.cam_pos.shape)
        for quaternion in model.cam_quat:
            axis = random.normal(size=3)
            turn = np.empty(4)
            angle = np.deg2rad(random.uniform(0, level.angle))
            mujoco.mju_axisAngle2Quat(turn, axis / np.linalg.norm(axis), angle)
            mujoco.mju_mulQuat(quaternion, quaternion.copy(), turn)
