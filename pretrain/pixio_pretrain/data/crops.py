"""Cutting views out of images; all chance comes from a generator that the caller seeds."""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Box = tuple[float, float, float, float]
"""left, top, right, bottom, in pixels."""


def draw_box(size: tuple[int, int], scale: float, random: np.random.Generator) -> Box:
    """Draw a crop box (left, top, right, bottom) in pixels.

    Args:
        size: Width and height of the image.
        scale: Smallest share of the area that a crop keeps. At 1 the box is the largest centred square.
        random: Source of chance.

    Returns:
        A box inside the image: area uniform in [scale, 1] of the image's, width : height log-uniform in [3/4, 4/3],
        shrunk to fit where it would reach over the edge.
    """
    width, height = size
    if scale >= 1:
        side = min(size)
        left, top = (width - side) / 2, (height - side) / 2
        return left, top, left + side, top + side
    area = random.uniform(scale, 1) * width * height
    shape = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
    w, h = min(math.sqrt(area * shape), width), min(math.sqrt(area / shape), height)
    left, top = random.uniform(0, width - w), random.uniform(0, height - h)
    return left, top, left + w, top + h


def crop_image(
    image: Image.Image, box: Box, side: int, *, resample: Image.Resampling = Image.Resampling.BICUBIC
) -> NDArray[np.uint8]:
    """Cut out a box and resize it to a square: [3 side side]."""
    return np.asarray(image.resize((side, side), resample, box=box)).transpose(2, 0, 1)
