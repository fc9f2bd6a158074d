"""Sets of colour and exact depth, as ``lerobot_env_pixio.rgbd`` renders them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch import Tensor

from pixio_robot.errors import DataError

Rows = NDArray[np.int64]

_NEEDED = ("color", "depth", "intrinsics", "cam2world", "scene", "task")
_MOST_MEMORY = 8 * 2**30  # bytes of colour and depth


@dataclass(frozen=True, kw_only=True)
class RgbdSet:
    """Moments of scenes, each seen by the same number of calibrated cameras. Everything is held in memory.

    A *frame* is one view of one moment; frame f is view f mod v of moment f div v.

    Attributes:
        folder: Where it lies.
        facts: The group's attributes.
        color: uint8 [n v h w 3].
        depth: float32 [n v h w], metres along the optical axis.
        intrinsics: float32 [n v 3 3].
        cam2world: float32 [n v 4 4].
        scene: int32 [n]; moments of one scene are alike.
        task: int16 [n], an index into ``facts["tasks"]``.
    """

    folder: Path
    facts: dict[str, Any]
    color: NDArray[np.uint8]
    depth: NDArray[np.float32]
    intrinsics: Tensor
    cam2world: Tensor
    scene: NDArray[np.int32]
    task: NDArray[np.int16]

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """Read a finished set.

        Raises:
            DataError: There is none, it is unfinished, or it does not fit into memory.
        """
        folder = Path(folder).expanduser()
        try:
            group: Any = zarr.open_group(folder, mode="r")
        except (FileNotFoundError, ValueError) as error:
            raise DataError(f"{folder} holds no zarr group of colour and depth: scripts/render_rgbd.py.") from error
        missing = [name for name in _NEEDED if name not in group]
        if missing:
            raise DataError(f"{folder} lacks the arrays {', '.join(missing)}: scripts/render_rgbd.py makes such sets.")
        if not group.attrs.get("complete"):
            raise DataError(f"{folder} is unfinished. Give the command that renders it again; it goes on.")
        size = sum(group[name].size * group[name].dtype.itemsize for name in ("color", "depth"))
        if size > _MOST_MEMORY:
            raise DataError(
                f"{folder} holds {size / 2**30:.1f} GiB of colour and depth, and at most "
                f"{_MOST_MEMORY / 2**30:.0f} GiB are held in memory: render fewer scenes, or smaller ones."
            )
        return cls(
            folder=folder,
            facts=group.attrs.asdict(),
            color=np.asarray(group["color"][:]),
            depth=np.asarray(group["depth"][:]),
            intrinsics=torch.from_numpy(np.asarray(group["intrinsics"][:], np.float32)),
            cam2world=torch.from_numpy(np.asarray(group["cam2world"][:], np.float32)),
            scene=np.asarray(group["scene"][:]),
            task=np.asarray(group["task"][:]),
        )

    @property
    def views(self) -> int:
        """Cameras."""
        return self.color.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.color.shape[2], self.color.shape[3]

    def __len__(self) -> int:
        """Number of frames."""
        return self.color.shape[0] * self.views

    def scenes(self, frames: Rows) -> NDArray[np.int32]:
        """The scene of each frame."""
        return self.scene[frames // self.views]

    def images(self, frames: Rows) -> Tensor:
        """Pictures, uint8 [b 3 h w]."""
        return torch.from_numpy(self.color[frames // self.views, frames % self.views]).permute(0, 3, 1, 2)

    def depths(self, frames: Rows) -> Tensor:
        """True depth, float32 [b h w], metres."""
        return torch.from_numpy(self.depth[frames // self.views, frames % self.views])

    def calibration(self, frames: Rows) -> tuple[Tensor, Tensor]:
        """Intrinsics [b 3 3] and cam2world [b 4 4]."""
        where = (torch.from_numpy(frames // self.views), torch.from_numpy(frames % self.views))
        return self.intrinsics[where], self.cam2world[where]

    @property
    def has_parts(self) -> bool:
        """Whether the set says which body each pixel shows, as rendered ones do."""
        group: Any = zarr.open_group(self.folder, mode="r")
        return "body" in group and "bodies" in group

    @cached_property
    def bodies(self) -> tuple[NDArray[np.integer[Any]], list[dict[str, Any]]]:
        """Which body each pixel shows, [n v h w], -1 for none; and for each task the "names" and "parts" of bodies.

        Raises:
            DataError: The set does not say.
        """
        if not self.has_parts:
            raise DataError(f"{self.folder} does not say which body each pixel shows: arrays 'body' and 'bodies'.")
        group: Any = zarr.open_group(self.folder, mode="r")
        return np.asarray(group["body"][:]), [group[f"bodies/{task}"].attrs.asdict() for task in self.facts["tasks"]]

    @cached_property
    def parts(self) -> tuple[Sequence[str], NDArray[np.int8]]:
        """Names of the parts of a scene, and which of them each pixel shows, [n v h w]; -1 for none.

        Raises:
            DataError: The set does not say.
        """
        body, tasks = self.bodies
        names, found = [], np.full(body.shape, -1, np.int8)
        for number, task in enumerate(tasks):
            parts = task["parts"]
            names += [part for part in dict.fromkeys(parts) if part not in names]
            table = np.array([names.index(part) for part in parts] + [-1], np.int8)  # body -1 reads the last entry
            mine = self.task == number
            found[mine] = table[body[mine]]
        return names, found


def read_held_out(data: Path) -> dict[str, RgbdSet]:
    """Read all sets in "held_out", in the order of their names, "all" last.

    Raises:
        DataError: There is none.
    """
    found = sorted((data / "held_out").glob("*"), key=lambda path: (path.name == "all", path.name))
    if not found:
        raise DataError(f"{data / 'held_out'} holds no sets to measure on: scripts/render_rgbd.py renders them.")
    return {path.name: RgbdSet.read(path) for path in found}


def once_per_set[T](make: Callable[[RgbdSet], T]) -> Callable[[RgbdSet], T]:
    """Make something of a set when it is first asked for, such as what an encoder says of its frames, and keep it."""
    made: dict[Path, T] = {}

    def of(frames: RgbdSet) -> T:
        if frames.folder not in made:
            made[frames.folder] = make(frames)
        return made[frames.folder]

    return of
