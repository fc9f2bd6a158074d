"""Pictures of how two views' cells match."""

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from pixio_pretrain.objectives.cells import cell_centers, find_shared

MARK = (0, 255, 255)


def draw_matches(images: Tensor, boxes: Tensor, alike: Tensor) -> Image.Image:
    """Mark one place of each first view, and show what of the second view is like it.

    The place is the shared cell nearest to the middle of the first view; where the views share none, the middle.

    Args:
        images: uint8 [b 2 3 s s].
        boxes: [b 2 4]; see ``make_pair``.
        alike: [b n h w], cosines of the first view's cells (n = h * w) and the second's.

    Returns:
        A column for each pair; rows: first view, second view, cosines from the pair's least (black) to its greatest
        (yellow).
    """
    grid = (alike.shape[-2], alike.shape[-1])
    side = images.shape[-1]
    middle = (cell_centers(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), grid) - 0.5).norm(dim=-1)  # 1 n
    shared = find_shared(boxes[:, 0], boxes[:, 1], grid)
    places = (middle + ~shared).argmin(dim=1)  # b
    rows = []
    for pair, (box, other), place, maps in zip(images, boxes, places.tolist(), alike, strict=True):
        here = cell_centers(box[None], grid)[0, place]
        there = (here - other[:2]) / (other[2:] - other[:2])
        u, v = (place % grid[1] + 0.5) / grid[1], (place // grid[1] + 0.5) / grid[0]
        views = [pair[0].permute(1, 2, 0).numpy(), pair[1].permute(1, 2, 0).numpy(), _heat(maps[place], side)]
        marks = [(u, v), tuple(there.tolist()), tuple(there.tolist())]
        rows.append(np.concatenate([_mark(view, *mark) for view, mark in zip(views, marks, strict=True)]))
    return Image.fromarray(np.concatenate(rows, axis=1))


def _heat(alike: Tensor, side: int) -> NDArray[np.uint8]:
    """Colour a map of cosines: uint8 [side side 3]."""
    values = (alike - alike.min()) / (alike.max() - alike.min()).clamp(min=1e-6)
    colours = mpl.colormaps["inferno"](values.numpy())[..., :3]
    image = Image.fromarray((colours * 255).astype(np.uint8))
    return np.asarray(image.resize((side, side), Image.Resampling.NEAREST))


def _mark(view: NDArray[np.uint8], u: float, v: float) -> NDArray[np.uint8]:
    """Ring a point, given as shares of the view's width and height; one that is out of sight is not drawn."""
    image, side = Image.fromarray(view), view.shape[0]
    if 0 <= u <= 1 and 0 <= v <= 1:
        x, y, radius = u * side, v * side, max(2.0, side / 28)
        ring = ImageDraw.Draw(image)
        ring.ellipse((x - radius, y - radius, x + radius, y + radius), outline=MARK, width=max(1, side // 100))
    return np.asarray(image)
