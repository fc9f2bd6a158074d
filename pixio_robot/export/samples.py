"""Inputs on which an exported model is compared with torch: pictures, and cameras that look at a table.

Noise would hide errors: an encoder answers it with much the same tokens everywhere. So most samples are pictures that a
camera could have taken. Focal length, principal point and pose differ from sample to sample, so that an input that the
graph ignores, or holds as a constant, cannot pass.
"""

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pixio_robot.checkpoints import SHIPPED
from pixio_robot.images import resize

SAMPLES = 4


def sample_images(count: int, size: tuple[int, int]) -> Tensor:
    """Give rendered robot scenes, and noise as the last one: uint8 [count 3 h w].

    The scenes are the originals of the reconstructions that come with the shipped encoder: the bottom row of its
    picture, cut into squares.
    """
    with Image.open(SHIPPED / "pixio_vitt16" / "picture.png") as picture:
        pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
    side = pixels.shape[1] // 3
    scenes = torch.stack(pixels[:, -side:].split(side, dim=2))  # number 3 side side
    chosen = resize(scenes[torch.arange(count) % len(scenes)], size).contiguous()
    chosen[-1] = torch.randint(0, 256, chosen[-1].shape, generator=torch.Generator().manual_seed(0))
    return chosen


def sample_cameras(count: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Give calibrations that all differ: intrinsics [count 3 3] and cam2base [count 4 4], looking down at a table."""
    intrinsics, poses = torch.zeros(count, 3, 3), torch.zeros(count, 4, 4)
    for number in range(count):
        focal = max(size) * (0.8 + 0.15 * (number % 7))
        center = size[1] / 2 + number % 5, size[0] / 2 - number % 3
        intrinsics[number] = torch.tensor([[focal, 0, center[0]], [0, focal * 1.02, center[1]], [0, 0, 1]])
        tilt, turn = math.radians(35 + 11 * (number % 5)), math.radians(40 * number)
        forward = [math.cos(tilt) * math.cos(turn), math.cos(tilt) * math.sin(turn), -math.sin(tilt)]
        right = [math.sin(turn), -math.cos(turn), 0.0]
        axes = torch.tensor([right, torch.linalg.cross(torch.tensor(forward), torch.tensor(right)).tolist(), forward])
        poses[number, :3, :3] = axes.T
        poses[number, :3, 3] = torch.tensor([-0.4, 0.1 * number, 0.6 + 0.1 * (number % 4)])
        poses[number, 3, 3] = 1
    return intrinsics, poses


def sample_inputs(
    names: tuple[str, ...], *, batch: int | None, cameras: int, size: tuple[int, int], dtype: torch.dtype
) -> dict[str, Tensor]:
    """Give ``SAMPLES`` samples of every input, or as many more as fill whole batches.

    Args:
        names: Inputs of the graph: "images", "intrinsics", "cam2base".
        batch: Of the graph; None for any.
        cameras: Of the graph; with more than one, a second dimension.
        size: (height, width) of the images in pixels.
        dtype: Of the images.
    """
    count = SAMPLES if batch is None else batch * math.ceil(SAMPLES / batch)
    images = sample_images(count * cameras, size)
    images = images if dtype == torch.uint8 else images.to(dtype) / 255
    intrinsics, cam2base = sample_cameras(count * cameras, size)
    found = {"images": images, "intrinsics": intrinsics, "cam2base": cam2base}
    return {name: found[name].unflatten(0, (count, cameras)) if cameras > 1 else found[name] for name in names}
