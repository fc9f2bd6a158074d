"""Pictures of predictions, beside the image and the truth."""

import colorsys

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from pixio_pretrain.evaluation.sets.masks import IGNORED

SHOWN = 6
"""Validation images, evenly spread, that are pictured."""

GAP = 4
TALLEST = 240


def side_by_side(*parts: Tensor) -> Image.Image:
    """Put pictures uint8 [3 h w] of one size beside each other, at most ``TALLEST`` pixels high."""
    white = torch.full((3, parts[0].shape[1], GAP), 255, dtype=torch.uint8)
    row = [piece for part in parts for piece in (part, white)][:-1]
    picture = Image.fromarray(torch.cat(row, dim=2).permute(1, 2, 0).numpy())
    picture.thumbnail((picture.width, TALLEST))
    return picture


def depth_colours(values: Tensor, greatest: float) -> Tensor:
    """Colour a map [h w] from 0 (dark) to ``greatest``: uint8 [3 h w]."""
    table = (np.asarray(colormaps["magma"](np.arange(256)))[:, :3] * 255).astype(np.uint8)
    places = (values / greatest).clamp(0, 1).mul(255).round().byte().numpy()
    return torch.from_numpy(table[places]).permute(2, 0, 1)


def class_colours(labels: Tensor) -> Tensor:
    """Colour a map of classes [h w], black where there is none: uint8 [3 h w]."""
    hues = [colorsys.hsv_to_rgb(0.61803399 * number % 1, 0.45 + 0.5 * (number % 2), 0.95) for number in range(256)]
    table = (np.array(hues) * 255).astype(np.uint8)
    table[IGNORED] = 0
    return torch.from_numpy(table[labels.byte().numpy()]).permute(2, 0, 1)
