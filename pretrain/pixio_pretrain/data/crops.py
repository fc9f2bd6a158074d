"""Cutting views out of images; all chance comes from numbers that the caller draws."""

from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Box = tuple[float, float, float, float]
"""left, top, right, bottom, in pixels."""


def draw_box(size: tuple[int, int], scale: float, random: np.random.Generator) -> Box:
    """Draw one crop box, as ``place_boxes`` does."""
    chance = random.random((1, 4)) if scale < 1 else np.zeros((1, 4))
    return cast(Box, tuple(place_boxes(chance, size, scale)[0].tolist()))


def place_boxes(chance: NDArray[Any], size: tuple[int, int], scale: float) -> NDArray[np.float64]:
    """Place crop boxes (left, top, right, bottom) in pixels.

    Args:
        chance: Uniform numbers in [0, 1), [b 4]: for area, shape, left and top.
        size: Width and height of the images.
        scale: Smallest share of the area that a crop keeps. At 1 the box is the largest centred square.

    Returns:
        Boxes [b 4] inside the image: area uniform in [scale, 1] of the image's, width : height log-uniform in
        [3/4, 4/3], shrunk to fit where it would reach over the edge.
    """
    width, height = size
    if scale >= 1:
        side = min(size)
        left, top = (width - side) / 2, (height - side) / 2
        return np.tile(np.array([left, top, left + side, top + side]), (len(chance), 1))
    area = (scale + (1 - scale) * chance[:, 0]) * width * height
    shape = np.exp(np.log(3 / 4) + (np.log(4 / 3) - np.log(3 / 4)) * chance[:, 1])
    w, h = np.minimum(np.sqrt(area * shape), width), np.minimum(np.sqrt(area / shape), height)
    left, top = (width - w) * chance[:, 2], (height - h) * chance[:, 3]
    return np.stack([left, top, left + w, top + h], axis=1)


def crop_image(
    image: Image.Image, box: Box, side: int, *, resample: Image.Resampling = Image.Resampling.BICUBIC
) -> NDArray[np.uint8]:
    """Cut out a box and resize it to a square: [3 side side]."""
    return np.asarray(image.resize((side, side), resample, box=box)).transpose(2, 0, 1)


def crop_images(images: Tensor, boxes: Tensor, side: int) -> Tensor:
    """Cut a box out of each image and resize it to a square as ``crop_image`` does, up to rounding, on any device.

    Args:
        images: uint8 [b 3 h w].
        boxes: left, top, right, bottom in pixels, [b 4].
        side: Pixels of a side of the crops.

    Returns:
        uint8 [b 3 side side].
    """
    rows = _bicubic(boxes[:, 1], boxes[:, 3], images.shape[2], side)
    columns = _bicubic(boxes[:, 0], boxes[:, 2], images.shape[3], side)
    lines = _level(images.float() @ columns.unsqueeze(1).transpose(2, 3))  # as Pillow keeps them
    return _level(rows.unsqueeze(1) @ lines).to(torch.uint8)


def _level(grey: Tensor) -> Tensor:
    """The nearest grey level; halves go up, as in Pillow."""
    return (grey + 0.5).floor().clamp(0, 255)


def _bicubic(start: Tensor, end: Tensor, length: int, side: int) -> Tensor:
    """Weights [b side length] that resample a line of pixels from ``start`` to ``end``: Pillow's, antialiased."""
    step = ((end - start) / side).float()[:, None, None]
    wide = step.clamp(min=1)  # a kernel grows where several pixels become one
    pixels = torch.arange(length, device=start.device) + 0.5
    centres = start.float()[:, None, None] + (torch.arange(side, device=start.device)[:, None] + 0.5) * step
    x = ((pixels - centres) / wide).abs()  # b side length
    near, far = (1.5 * x - 2.5) * x**2 + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    return weights / weights.sum(dim=-1, keepdim=True)
