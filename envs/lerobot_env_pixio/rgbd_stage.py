"""One task as a stage for depth cameras: cameras put around the table, looks redrawn part by part, all that is seen."""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's names live in a compiled module that the type checker cannot see.)

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from lerobot_env_pixio.draws import Draws
from lerobot_env_pixio.rendering import Cameras
from lerobot_env_pixio.shifts import ASPECTS, VisualShift
from lerobot_env_pixio.suites import load_simulation
from lerobot_env_pixio.tasks import find_task
from pixio_robot.errors import SettingError, UnknownNameError

PARTS = ("scenery", "robot", "gripper", "object")
"""What a body of the model can be."""

_PLACES = 4  # stream of randomness of free cameras, beside those in `shifts`


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Where a suite's table is, and which bodies are what.

    Attributes:
        center: What free cameras look at, in the world, metres.
        azimuth: Degrees about z from which free cameras look, 0 along x: the arm's back side is left out.
        elevation: Degrees above the table.
        distance: Metres from the centre.
        view: Vertical field of view, degrees.
        robots: Bodies at the root of each arm; everything that hangs on them is robot.
        grippers: Bodies at the root of each hand.
        scenery: Bodies that are always there.
    """

    center: tuple[float, float, float]
    azimuth: tuple[float, float]
    elevation: tuple[float, float] = (15.0, 60.0)
    distance: tuple[float, float] = (0.7, 1.4)
    view: tuple[float, float] = (38.0, 62.0)
    robots: tuple[str, ...]
    grippers: tuple[str, ...]
    scenery: tuple[str, ...]


TABLES = {
    # The arm stands at the origin, so the world is its base frame; it faces +y.
    "metaworld": Table(
        center=(0.0, 0.6, 0.1),
        azimuth=(20.0, 160.0),
        robots=("base",),
        grippers=("hand",),
        scenery=("world", "tablelink", "RetainingWall", "mocap"),
    ),
    # Two arms face each other along x; the world's origin lies on the table's near edge, between them.
    "aloha": Table(
        center=(0.0, 0.5, 0.1),
        azimuth=(200.0, 340.0),
        robots=("vx300s_left", "vx300s_right"),
        grippers=("vx300s_left/gripper_link", "vx300s_right/gripper_link"),
        scenery=("world", "table", "midair"),
    ),
}
"""Suite to table."""


class Stage:
    """One task, looked at by depth cameras that stand elsewhere in every scene.

    Args:
        suite: A key of ``TABLES``.
        task: A task of that suite.
        cameras: Cameras of the model; they are shaken as the shift "cameras" would.
        free: How many more are put anywhere around the table. Cameras of the model that are not named lend their names.
        size: (height, width) in pixels.
        render: A key of ``RENDER_PRESETS``.
        held_out: Of ``ASPECTS``: those that show what the others' training half never shows.

    Attributes:
        simulation: The physics.
        cameras: All cameras, in order: the named ones, then the free ones.

    Raises:
        UnknownNameError: An unknown suite, task, camera, preset or aspect.
        SettingError: A suite whose table nobody has described, or too few cameras to lend their names.
    """

    def __init__(
        self,
        suite: str,
        task: str,
        *,
        cameras: Sequence[str],
        free: int,
        size: tuple[int, int],
        render: str,
        held_out: Sequence[str] = (),
    ) -> None:
        for aspect in held_out:
            if aspect not in ASPECTS:
                raise UnknownNameError("aspect to hold out", aspect, ASPECTS)
        self.simulation = load_simulation(suite)(find_task(suite, task).name)
        if suite not in TABLES:
            raise SettingError(f"Where the table of {suite!r} is, is not known; known: {', '.join(sorted(TABLES))}.")
        model = self.simulation.model
        standing = [model.camera(index).name for index in range(model.ncam) if model.cam_bodyid[index] == 0]
        lent = [name for name in standing if name not in cameras]
        if not 0 <= free <= len(lent):
            raise SettingError(
                f"free={free}: 0 to {len(lent)} free cameras can be had beside {list(cameras)} in {suite!r}."
            )
        self._free = lent[:free]
        self.cameras = Cameras(
            model, self.simulation.data, sizes=dict.fromkeys([*cameras, *self._free], size), preset=render
        )
        self._table = TABLES[suite]
        self._splits = {aspect: "test" if aspect in held_out else "train" for aspect in ASPECTS}
        self._shift = VisualShift(self.simulation, self.cameras, "all", self._splits)

    def reset(self, seed: int) -> None:
        """Draw a scene, its looks and its cameras, fixed by the seed alone."""
        self.simulation.reset(seed)
        self._shift.redraw(seed)
        random = np.random.default_rng([seed, 1, _PLACES])
        for name in self._free:
            self._place(name, Draws(random, self._splits["cameras"]))
        mujoco.mj_forward(self.simulation.model, self.simulation.data)

    def look(self) -> dict[str, NDArray[Any]]:
        """See everything: arrays [views ...] by name."""
        names, cameras = self.cameras.names, self.cameras
        return {
            "color": np.stack([cameras.color(name) for name in names]),
            "depth": np.stack([cameras.depth(name) for name in names]),
            "body": np.stack([cameras.segmentation(name) for name in names]).astype(np.int16),
            "intrinsics": np.stack([cameras.intrinsics(name) for name in names]),
            "cam2world": np.stack([cameras.cam2world(name) for name in names]),
        }

    def parts(self) -> list[str]:
        """Say of every body which of ``PARTS`` it is."""
        model, table = self.simulation.model, self._table
        names = self.cameras.bodies
        found: list[str] = []
        for body in range(model.nbody):  # parents come before their children
            above = found[model.body_parentid[body]] if body else "scenery"
            if names[body] in table.grippers or above == "gripper":
                found.append("gripper")
            elif names[body] in table.robots or above == "robot":
                found.append("robot")
            else:
                found.append("scenery" if names[body] in table.scenery else "object")
        return found

    def close(self) -> None:
        """Free the renderers."""
        self.cameras.close()

    def _place(self, name: str, draws: Draws) -> None:
        """Put a camera somewhere around the table, level, and let it look at about the centre."""
        table, camera = self._table, self.simulation.model.camera(name)
        azimuth, elevation = (np.deg2rad(draws.uniform(*bounds)) for bounds in (table.azimuth, table.elevation))
        away = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
        target = np.asarray(table.center) + draws.uniform(-0.1, 0.1, size=3)
        side = np.cross([0.0, 0.0, 1.0], away)
        side /= np.linalg.norm(side)
        # MuJoCo's cameras look along -z, x to the right, y up: so z points away from the target.
        turn = np.stack([side, np.cross(away, side), away], axis=1)
        quaternion = np.empty(4)
        mujoco.mju_mat2Quat(quaternion, turn.ravel())
        camera.pos[:] = target + draws.uniform(*table.distance) * away
        camera.quat[:] = quaternion
        camera.fovy[:] = draws.uniform(*table.view)
