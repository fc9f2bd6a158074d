"""What simulated frames ask, and the exact answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixio_pretrain.geometry.sets import RgbdSet
from pixio_robot.errors import DataError
from pixio_robot.geometry.cameras import unproject

CLASSES = ("rest", "table", "object", "gripper")
"""What a pixel can show. "rest" is the arm, the walls, the sky, and things that stand about."""

THINGS = ("gripper", "object")
"""Classes whose position is asked."""

TABLES = ("tablelink", "table")
"""Bodies that are a table, in Meta-World and in ALOHA's scenes."""

VISIBLE = 5e-4
"""Share of a picture's pixels that a thing has to cover for its position to be asked: 8 pixels of 128 x 128."""

_CHUNK = 128


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What b frames show, or what was read from them. OpenCV axes (x right, y down, z forward).

    Attributes:
        depth: Metres along the optical axis, float32 [b h w].
        labels: Indices into ``CLASSES``, uint8 [b h w].
        pixels: Centre of the visible part of each of ``THINGS`` in the picture: (x, y) in pixels, float32 [b 2]; NaN
            where too little of it is seen.
        metres: Mean of the visible surface of each of ``THINGS`` before the camera, metres, float32 [b 3]; NaN alike.
        cam2world: Pose of the camera in the base frame, metres, float32 [b 4 4].
    """

    depth: Tensor
    labels: Tensor
    pixels: Mapping[str, Tensor]
    metres: Mapping[str, Tensor]
    cam2world: Tensor

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.depth)

    def take(self, rows: Tensor) -> "Answers":
        """Give those of some frames."""
        return Answers(
            depth=self.depth[rows],
            labels=self.labels[rows],
            pixels={name: values[rows] for name, values in self.pixels.items()},
            metres={name: values[rows] for name, values in self.metres.items()},
            cam2world=self.cam2world[rows],
        )


def join(parts: Sequence[Answers]) -> Answers:
    """Put answers to several batches of frames behind each other."""
    return Answers(
        depth=torch.cat([part.depth for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
        pixels={name: torch.cat([part.pixels[name] for part in parts]) for name in THINGS},
        metres={name: torch.cat([part.metres[name] for part in parts]) for name in THINGS},
        cam2world=torch.cat([part.cam2world for part in parts]),
    )


def true_answers(frames: RgbdSet) -> Answers:
    """Answer for every frame of a set.

    Raises:
        DataError: The set does not say which body each pixel shows, or has no table, gripper or object anywhere.
    """
    labels = torch.from_numpy(_labels(frames)).flatten(0, 1)
    missing = [name for number, name in enumerate(CLASSES) if not (labels == number).any()]
    if missing:
        raise DataError(f"{frames.folder} shows no pixel of {', '.join(missing)} in any frame; is it a set of a task?")
    found = []
    for rows in np.array_split(np.arange(len(frames)), -(-len(frames) // _CHUNK)):
        depth, part = frames.depths(rows), labels[torch.from_numpy(rows)]
        intrinsics, cam2world = frames.calibration(rows)
        points = unproject(depth, intrinsics)
        masks = {name: part == CLASSES.index(name) for name in THINGS}
        places = _places(frames.size).expand(len(rows), -1, -1, -1)
        found.append(
            Answers(
                depth=depth,
                labels=part,
                pixels={name: _means(places, mask) for name, mask in masks.items()},
                metres={name: _means(points, mask) for name, mask in masks.items()},
                cam2world=cam2world,
            )
        )
    return join(found)


def _labels(frames: RgbdSet) -> NDArray[np.uint8]:
    """The class of every pixel [n v h w]."""
    names, parts = frames.parts
    labels = np.zeros(parts.shape, np.uint8)
    for name in THINGS:
        if name in names:
            labels[parts == names.index(name)] = CLASSES.index(name)
    body, tasks = frames.bodies
    for number, task in enumerate(tasks):
        is_table = np.array([name in TABLES for name in task["names"]] + [False])
        mine = frames.task == number
        labels[mine] = np.where(is_table[body[mine]], CLASSES.index("table"), labels[mine])
    return labels


def _places(size: tuple[int, int]) -> Tensor:
    """Each pixel's centre, (x, y) [1 h w 2]."""
    y, x = torch.meshgrid(*(torch.arange(side) + 0.5 for side in size), indexing="ij")
    return torch.stack([x, y], dim=-1)[None]


def _means(values: Tensor, mask: Tensor) -> Tensor:
    """Average values [b h w k] over a mask [b h w]: [b k]; NaN where it covers too little."""
    count = mask.sum(dim=(1, 2))
    mean = torch.where(mask[..., None], values, 0.0).sum(dim=(1, 2)) / count[:, None]
    least = VISIBLE * mask.shape[1] * mask.shape[2]
    return torch.where((count >= max(1.0, least))[:, None], mean, torch.nan)
