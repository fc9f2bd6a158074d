"""Cutting views out of images; all chance comes from numbers that the caller draws."""

from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Box = tuple[float, float, float, float]
"""left, top, right, bottom, in pixels."""

RATIOS = (3 / 4, 4 / 3)
"""Bounds on width : height."""

TRIES = 10
CHANCES = 2 * TRIES + 2
"""Uniform numbers that a box is placed with: an area and a shape for each try, then left and top."""


def draw_box(size: tuple[int, int], scale: float, random: np.random.Generator) -> Box:
    """Draw one crop box, as ``place_boxes`` does."""
    chance = random.random((1, CHANCES)) if scale < 1 else np.zeros((1, CHANCES))
    return cast(Box, tuple(place_boxes(chance, size, scale)[0].tolist()))


def place_boxes(chance: NDArray[Any], size: tuple[int, int], scale: float) -> NDArray[np.float64]:
    """Place crop boxes (left, top, right, bottom) in pixels.

    Args:
        chance: Uniform numbers in [0, 1), [b CHANCES].
        size: Width and height of the images.
        scale: Smallest share of the area that a crop keeps. At 1 the box is the largest centred square.

    Returns:
        Boxes [b 4] inside the image: area uniform in [scale, 1] of the image's, width : height log-uniform in
        ``RATIOS``. One that would reach over the edge is drawn again; where no try fits, it is the largest of an
        allowed shape, in the centre. Only a box of an image too long for both bounds is smaller than ``scale``.
    """
    width, height = size
    if scale >= 1:
        side = min(size)
        left, top = (width - side) / 2, (height - side) / 2
        return np.tile(np.array([left, top, left + side, top + side]), (len(chance), 1))
    ratio = min(max(width / height, RATIOS[0]), RATIOS[1])
    boxes = np.tile(np.array([min(width, height * ratio), min(height, width / ratio), 0.5, 0.5]), (len(chance), 1))
    area = (scale + (1 - scale) * chance[:, :TRIES]) * width * height
    shape = RATIOS[0] * (RATIOS[1] / RATIOS[0]) ** chance[:, TRIES:-2]
    w, h = np.sqrt(area * shape), np.sqrt(area / shape)  # b tries
    fits = (w <= width) & (h <= height)
    rows, first = np.flatnonzero(fits.any(axis=1)), fits.argmax(axis=1)
    boxes[rows] = np.column_stack([w[rows, first[rows]], h[rows, first[rows]], chance[rows, -2:]])
    w, h, x, y = boxes.T
    left, top = (width - w) * x, (height - h) * y
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
