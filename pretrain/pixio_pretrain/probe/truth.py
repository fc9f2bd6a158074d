"""The exact answers that stand beside the frames of a store."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import zarr
from numpy.typing import NDArray

from pixio_robot.errors import DataError

POSITIONS = ("hand", "object", "goal")
"""What may have a place; every store with answers tells the first two."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Truth:
    """What a frame store knows of its frames. OpenCV axes (x right, y down, z forward), metres.

    Attributes:
        cameras: Names of the cameras.
        camera: [n], the camera of each frame, an index into ``cameras``.
        world: Positions by name, each [n 3], in the world.
        depth: [n g h], metres along the optical axis.
        cam2world: [n 4 4], the camera's pose.
    """

    cameras: list[str]
    camera: NDArray[np.int64]
    world: dict[str, NDArray[np.float32]]
    depth: NDArray[np.float32]
    cam2world: NDArray[np.float32]

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """Read the answers of a finished store.

        Raises:
            DataError: If it has none, or is no store.
        """
        try:
            group: Any = zarr.open_group(Path(folder).expanduser(), mode="r")
        except (FileNotFoundError, ValueError) as error:
            raise DataError(f"{folder} holds no zarr group of frames: {error}") from error
        missing = {"camera", "depth", "cam2world", *POSITIONS[:2]} - set(group)
        if missing:
            raise DataError(
                f"{folder} lacks the exact answers {', '.join(sorted(missing))}, so a probe has nothing to learn. "
                "Render a set that has them: scripts/render_frames.py --truth."
            )
        return cls(
            cameras=list(group.attrs["cameras"]),
            camera=np.asarray(group["camera"][:], np.int64),
            world={name: np.asarray(group[name][:], np.float32) for name in POSITIONS if name in group},
            depth=np.asarray(group["depth"][:], np.float32),
            cam2world=np.asarray(group["cam2world"][:], np.float32),
        )

    def position(self, name: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Give positions [m 3] as the camera of each frame has them before it.

        Where cameras move between scenes, a picture says where things are before the camera, and not where the camera
        is; where they stand still, distances and squared errors are the same as in the world.
        """
        rotation, origin = self.cam2world[rows, :3, :3], self.cam2world[rows, :3, 3]
        return np.einsum("nij,ni->nj", rotation, self.world[name][rows] - origin)

    def place(self, name: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Give places [m 2] in the picture: to the right and down of its middle, as shares of the focal length.

        What is behind the camera, or more than 45 degrees off its axis, is at the edge: at 1 or -1.
        """
        position = self.position(name, rows)
        return np.clip(position[:, :2] / np.maximum(position[:, 2:], 1e-6), -1, 1).astype(np.float32)
