"""Visual changes of a scene, redrawn for every episode; the physics stay.

Levels "mild" and "strong" change lights, colours and cameras. The others change one thing each, as far as "strong"
would where it has a say, or two ("looks": lights and colours); "all" is "strong" with new textures and distractors on
top.
"""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's names live in a compiled module that the type checker cannot see.)

from collections.abc import Mapping
from dataclasses import dataclass

import mujoco
import numpy as np

from lerobot_env_pixio.distractors import place
from lerobot_env_pixio.draws import Draws, check_split
from lerobot_env_pixio.rendering import Cameras
from lerobot_env_pixio.simulation import Simulation
from lerobot_env_pixio.textures import repaint
from pixio_robot.errors import UnknownNameError


@dataclass(frozen=True, kw_only=True, slots=True)
class ShiftLevel:
    """How far a scene may stray from its own looks.

    Attributes:
        light: Largest relative change of a lamp's strength.
        lamp: Largest displacement of a lamp, metres; one that is infinitely far away, as most are, shines the same.
        color: Share of each surface's colour that is replaced by a random one, at most.
        camera: Largest displacement of a camera along each axis, metres; one on the hand moves a tenth of it.
        angle: Largest turn of a camera, degrees; one on the hand turns as far.
        zoom: Largest relative change of a camera's field of view.
        textures: Whether whatever stands still is painted anew.
        distractors: Whether things stand about that have nothing to do with the task.
    """

    light: float = 0.0
    lamp: float = 0.0
    color: float = 0.0
    camera: float = 0.0
    angle: float = 0.0
    zoom: float = 0.0
    textures: bool = False
    distractors: bool = False


SHIFTS = {
    "mild": ShiftLevel(light=0.3, lamp=0.3, color=0.15, camera=0.02, angle=1.5, zoom=0.02),
    "strong": ShiftLevel(light=0.7, lamp=1.0, color=0.6, camera=0.08, angle=6.0, zoom=0.1),
    "looks": ShiftLevel(light=0.7, lamp=1.0, color=0.6),
    "lights": ShiftLevel(light=0.7, lamp=1.0),
    "colors": ShiftLevel(color=0.6),
    "cameras": ShiftLevel(camera=0.08, angle=6.0, zoom=0.1),
    "textures": ShiftLevel(textures=True),
    "distractors": ShiftLevel(distractors=True),
    "all": ShiftLevel(
        light=0.7, lamp=1.0, color=0.6, camera=0.08, angle=6.0, zoom=0.1, textures=True, distractors=True
    ),
}

ASPECTS = ("scenes", "textures", "lights", "cameras")
"""What a split may be said of: things that stand about, surfaces, lamps, where cameras are."""

_PLACES, _TURNS = ("cam_pos", "cam_pos0", "cam_poscom0"), ("cam_quat", "cam_mat0")
# A model's cameras that follow a body without turning with it have places and turns of their own.
_VISUAL = ("light_diffuse", "light_pos", "mat_rgba", "geom_rgba", *_PLACES, *_TURNS, "cam_fovy")
_TEXTURES, _DISTRACTORS = 1, 2  # streams of randomness of their own, so that "strong" is the same within "all"


class VisualShift:
    """Redraws the looks of one scene in place, always from the looks that it had at the start.

    Args:
        simulation: Whose model changes.
        cameras: Who is to see it.
        level: A key of ``SHIFTS``.
        split: "train" or "test", which share no looks, or None for all of them; or one for each of ``ASPECTS``.

    Raises:
        UnknownNameError: No such level or split.
    """

    def __init__(
        self, simulation: Simulation, cameras: Cameras, level: str, split: str | Mapping[str, str | None] | None
    ) -> None:
        if level not in SHIFTS:
            raise UnknownNameError("shift", level, SHIFTS)
        self._splits: Mapping[str, str | None] = split if isinstance(split, Mapping) else dict.fromkeys(ASPECTS, split)
        for one in self._splits.values():
            check_split(one)
        model = simulation.model
        self._simulation, self._cameras = simulation, cameras
        self._model, self._level = model, SHIFTS[level]
        self._base = {name: getattr(model, name).copy() for name in _VISUAL}
        self._headlight = model.vis.headlight.diffuse.copy()
        # A geom wears its material's colour only as long as its own is the default grey, which must stay then.
        self._painted = ~((model.geom_matid >= 0) & np.all(model.geom_rgba == (0.5, 0.5, 0.5, 1), axis=1))

    def redraw(self, seed: int) -> None:
        """Draw the looks of an episode, fixed by its seed alone."""
        self._change_values(np.random.default_rng([seed, 1]))
        if self._level.textures:
            draws = self._draws("textures", np.random.default_rng([seed, 1, _TEXTURES]))
            self._cameras.refresh_textures(repaint(self._model, draws))
        if self._level.distractors:
            draws = self._draws("scenes", np.random.default_rng([seed, 1, _DISTRACTORS]))
            self._cameras.distractors[:] = place(self._simulation.grounds, draws)
        mujoco.mj_forward(self._model, self._simulation.data)  # poses of lamps and cameras are computed there

    def restore(self) -> None:
        """Give the scene its own lights, colours and cameras back; textures and distractors stay."""
        for name, values in self._base.items():
            getattr(self._model, name)[:] = values
        self._model.vis.headlight.diffuse = self._headlight
        mujoco.mj_forward(self._model, self._simulation.data)

    def _draws(self, aspect: str, random: np.random.Generator) -> Draws:
        return Draws(random, self._splits[aspect])

    def _change_values(self, random: np.random.Generator) -> None:
        model, level, lamps = self._model, self._level, self._draws("lights", random)
        self.restore()
        strength = lamps.uniform(1 - level.light, 1 + level.light, size=(model.nlight + 1, 1))
        model.light_diffuse[:] *= strength[1:]
        model.vis.headlight.diffuse = self._headlight * strength[0]
        model.light_pos[:] += lamps.uniform(-level.lamp, level.lamp, size=model.light_pos.shape)
        surfaces = self._draws("textures", random)
        for colors, painted in ((model.mat_rgba, slice(None)), (model.geom_rgba, self._painted)):
            share = surfaces.uniform(0, level.color, size=(len(colors), 1))
            colors[painted, :3] += (share * (surfaces.uniform(0, 1, size=(len(colors), 3)) - colors[:, :3]))[painted]
        self._move_cameras(self._draws("cameras", random))

    def _move_cameras(self, draws: Draws) -> None:
        model, level = self._model, self._level
        model.cam_fovy[:] *= draws.uniform(1 - level.zoom, 1 + level.zoom, size=model.ncam)
        on_hand = model.cam_bodyid > 0
        reach = np.where(on_hand, level.camera / 10, level.camera)[:, None]
        step = draws.uniform(-reach, reach, size=model.cam_pos.shape)
        for name in _PLACES:
            getattr(model, name)[:] += step
        for quaternion, matrix in zip(*(getattr(model, name) for name in _TURNS), strict=True):
            axis = draws.random.normal(size=3)
            turn, turned = np.empty(4), np.empty(9)
            angle = np.deg2rad(float(draws.uniform(0, level.angle)))
            mujoco.mju_axisAngle2Quat(turn, axis / np.linalg.norm(axis), angle)
            mujoco.mju_mulQuat(quaternion, quaternion.copy(), turn)
            mujoco.mju_quat2Mat(turned, turn)
            matrix[:] = (matrix.reshape(3, 3) @ turned.reshape(3, 3)).ravel()
