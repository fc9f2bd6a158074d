"""Things that stand about and have nothing to do with the task: seen by cameras, unknown to the physics."""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's names live in a compiled module that the type checker cannot see.)

import colorsys
from dataclasses import dataclass

import mujoco
import numpy as np
from numpy.typing import NDArray

from lerobot_env_pixio.draws import Draws
from lerobot_env_pixio.simulation import Ground

_SHAPES = (
    mujoco.mjtGeom.mjGEOM_BOX,
    mujoco.mjtGeom.mjGEOM_SPHERE,
    mujoco.mjtGeom.mjGEOM_CYLINDER,
    mujoco.mjtGeom.mjGEOM_ELLIPSOID,
)
_MOST = 5  # things on one ground


@dataclass(frozen=True, kw_only=True, slots=True)
class Distractor:
    """One thing.

    Attributes:
        shape: MuJoCo's type of geom.
        size: Half its extent along each of its axes, metres [3].
        position: Its centre in the world, metres [3].
        turn: Its rotation matrix, row by row [9].
        color: Red, green, blue and opacity, 0 to 1 [4].
    """

    shape: int
    size: NDArray[np.float64]
    position: NDArray[np.float64]
    turn: NDArray[np.float64]
    color: NDArray[np.float32]

    def draw(self, scene: mujoco.MjvScene) -> None:
        """Add it to what is about to be rendered."""
        geom = scene.geoms[scene.ngeom]
        mujoco.mjv_initGeom(geom, self.shape, self.size, self.position, self.turn, self.color)
        geom.objtype, geom.objid = (
            mujoco.mjtObj.mjOBJ_UNKNOWN,
            -1,
        )  # else those of whatever was drawn last in this place
        geom.segid = scene.ngeom  # without a number of its own it would be left out of depth, too
        scene.ngeom += 1


def place(grounds: tuple[Ground, ...], draws: Draws) -> list[Distractor]:
    """Put one to a few things on every ground, each standing on it."""
    placed = []
    for ground in grounds:
        for _ in range(int(draws.random.integers(1, _MOST + 1))):
            shape = draws.choice(_SHAPES)
            size = draws.uniform(0.4, 1, size=3) * ground.largest
            if shape == mujoco.mjtGeom.mjGEOM_SPHERE:
                size[:] = size[2]
            if shape == mujoco.mjtGeom.mjGEOM_CYLINDER:
                size[0], size[1] = size[1], size[2]  # MuJoCo takes radius and half length
            height = size[1] if shape == mujoco.mjtGeom.mjGEOM_CYLINDER else size[2]
            where = draws.random.uniform(ground.low, ground.high)
            angle = draws.random.uniform(0, np.pi)
            cos, sin = np.cos(angle), np.sin(angle)
            hue = float(draws.uniform(0, 1))
            placed.append(
                Distractor(
                    shape=int(shape),
                    size=size,
                    position=np.append(where, ground.level + height),
                    turn=np.array([cos, -sin, 0, sin, cos, 0, 0, 0, 1]),
                    color=np.array([*colorsys.hsv_to_rgb(hue, 0.8, 0.8), 1], np.float32),
                )
            )
    return placed
