"""Pictures of what was read from simulated frames, beside the truth."""

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from pixio_pretrain.evaluation.pictures import class_colours, depth_colours, side_by_side
from pixio_pretrain.evaluation.simulator.answers import THINGS, Answers
from pixio_pretrain.geometry.mono import FARTHEST

COLOURS = {"gripper": (255, 40, 200), "object": (40, 220, 255)}
RADIUS = 0.04
"""Of the circle around a true position, as a share of the picture's width."""


def picture_of(pixels: Tensor, read: Answers, true: Answers, row: int) -> Image.Image:
    """Show one frame: positions (circle true, cross read), then depth and labels, the true ones first.

    Args:
        pixels: The frame, uint8 [3 h w].
        read: What was read from the frames of its set.
        true: What they show.
        row: Which of them it is.
    """
    drawn = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    draw, reach = ImageDraw.Draw(drawn), max(2.0, RADIUS * drawn.width)
    for name in THINGS:
        if true.pixels[name][row].isfinite().all():
            x, y = true.pixels[name][row].tolist()
            draw.ellipse((x - reach, y - reach, x + reach, y + reach), outline=COLOURS[name])
            x, y = read.pixels[name][row].tolist()
            draw.line((x - reach, y, x + reach, y), fill=COLOURS[name])
            draw.line((x, y - reach, x, y + reach), fill=COLOURS[name])
    marked = torch.from_numpy(np.array(drawn)).permute(2, 0, 1)
    maps = [depth_colours(part.depth[row].clamp(max=FARTHEST), FARTHEST) for part in (true, read)]
    maps += [class_colours(part.labels[row]) for part in (true, read)]
    return side_by_side(marked, *maps)
