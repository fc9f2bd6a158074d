"""The exact answers to what a picture asks: where hand, object and goal are, how far everything is, who looks.

All of it follows contract and camera conventions of `rendering`: metres, OpenCV axes (x right, y down, z forward),
pixel centres at +0.5, depth along the optical axis.
"""

import math

import numpy as np
from numpy.typing import NDArray

from lerobot_env_pixio.environment import ManipulationEnv
from lerobot_env_pixio.rendering import Cameras
from pixio_robot.errors import SettingError

DEPTH_SIDE = 32
"""The shorter side of a depth map has at least as many cells, where the picture itself has."""

MEANINGS = {
    "hand": "position of the gripper's body in the world, metres; body 'hand', a few centimetres above the finger tips",
    "object": "position of the task's main object in the world, metres, as Meta-World's observation has it",
    "goal": "position in the world where the object, or for some tasks the hand, has to go, metres",
    "depth": "metres along the optical axis at the centre of each cell of an even grid; the sky reads as over 10",
    "intrinsics": "pinhole matrix in pixels of 'frames', pixel centres at +0.5",
    "cam2world": "pose of the camera: OpenCV axes (x right, y down, z forward), metres",
}
"""The arrays of answers, and what their numbers mean."""


def depth_size(height: int, width: int) -> tuple[int, int]:
    """Give rows and columns of the depth map of a picture: the coarsest grid of square cells that is fine enough.

    A cell is a whole number of pixels, so that the map is the picture of the same camera at a smaller size.
    """
    common = math.gcd(height, width)
    cells = [side for side in range(1, common + 1) if common % side == 0 and min(height, width) // side >= DEPTH_SIDE]
    side = max(cells, default=1)
    return height // side, width // side


def answer_shapes(height: int, width: int) -> dict[str, tuple[int, ...]]:
    """Give the shape of one row of every array of answers."""
    return {
        "hand": (3,),
        "object": (3,),
        "goal": (3,),
        "depth": depth_size(height, width),
        "intrinsics": (3, 3),
        "cam2world": (4, 4),
    }


class Oracle:
    """Knows the answers to the pictures that an environment gives now.

    Args:
        env: An environment of Meta-World.

    Raises:
        SettingError: An environment of another suite, whose state nobody has named yet.
    """

    def __init__(self, env: ManipulationEnv) -> None:
        suite = env.settings["suite"]
        if suite != "metaworld":
            raise SettingError(f"Where the object is, is known for the suite 'metaworld' only, not for {suite!r}.")
        self._simulation, self._cameras = env.simulation, env.cameras
        # Rendered anew at the map's own size: a cell's number is the depth at its centre, no mixture across an edge.
        self._depth = Cameras(
            env.simulation.model,
            env.simulation.data,
            sizes={name: depth_size(*size) for name, size in env.cameras.sizes.items()},
            preset="fast",
        )
        self._depth.distractors = env.cameras.distractors  # they are seen, so they are near

    def answer(self) -> dict[str, NDArray[np.float64]]:
        """Answer for every camera, in their order: each array [cameras ...]."""
        names, state = self._cameras.names, self._simulation.state().astype(np.float64)
        return {
            "hand": np.tile(state[:3], (len(names), 1)),
            "object": np.tile(state[4:7], (len(names), 1)),
            "goal": np.tile(state[-3:], (len(names), 1)),
            "depth": np.stack([self._depth.depth(name) for name in names]).astype(np.float64),
            "intrinsics": np.stack([self._cameras.intrinsics(name) for name in names]),
            "cam2world": np.stack([self._cameras.cam2world(name) for name in names]),
        }

    def close(self) -> None:
        """Free the renderer of depth."""
        self._depth.close()
