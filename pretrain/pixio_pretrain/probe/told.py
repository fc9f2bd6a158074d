"""Positions that something else tells than an encoder's tokens: a perfect eye, colours, keypoints.

The last two are learnt from the frames that a read-out is fitted to, without their answers.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pixio_pretrain.data import Frames
from pixio_pretrain.probe.geometry import GeometryProbe, Rows, measure_position
from pixio_pretrain.probe.looks import picture
from pixio_pretrain.probe.palette import Palette
from pixio_pretrain.probe.truth import Truth
from pixio_robot import learn_keypoints, load_encoder

Told = Callable[[str], tuple[Tensor, Tensor]]
"""From a target to what it is read from: in training frames [n f], and in held-out ones [m f]."""

SIDE, COLORS, BATCH = 128, 64, 64
"""Pixels of a side, how many colours are looked for, and pictures that are looked at together."""


def probe_told(
    tell: Callable[[Frames, Truth, Rows, Rows], Told], frames: Frames, truth: Truth, train: Rows, held_out: Rows
) -> GeometryProbe:
    """Read positions from what is told of the frames of each camera and task.

    Args:
        tell: ``exact_places``, ``color_places`` or ``keypoint_places``.
        frames: Frames that know their tasks.
        truth: The answers, for the same rows.
        train: Rows to fit on.
        held_out: Rows to measure on, of other episodes.
    """
    assert frames.tasks is not None, "encoders are asked first"
    found = GeometryProbe()
    for number, camera in enumerate(truth.cameras):
        rows = [kind[truth.camera[kind] == number] for kind in (train, held_out)]
        for task in np.unique(frames.tasks[rows[1]]):
            fitted, asked = (kind[frames.tasks[kind] == task] for kind in rows)
            told = tell(frames, truth, fitted, asked)
            for target in truth.world:
                facts = {"camera": camera, "task": frames.task_names[int(task)], "target": target, "features": "grid"}
                measure_position(found, facts, told(target), frames, truth, fitted, asked)
    found.measurements.extend([replace(one, features="fine grid") for one in found.measurements])  # beside both
    return found


def exact_places(_: Frames, truth: Truth, train: Rows, held_out: Rows) -> Told:
    """Tell where in the picture each thing is, two numbers: what is left is how far off, and few scenes."""

    def told(target: str) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(truth.place(target, train)), torch.from_numpy(truth.place(target, held_out))

    return told


def color_places(frames: Frames, _: Truth, train: Rows, held_out: Rows) -> Told:
    """Tell where the colours are that come and go in the training frames, and how much there is of each."""
    pictures = [_pictures(frames, rows).flatten(2).transpose(1, 2).numpy() for rows in (train, held_out)]
    palette = Palette.learn(pictures[0], COLORS)
    told = palette(pictures[0]), palette(pictures[1])
    return lambda _: told


def keypoint_places(frames: Frames, _: Truth, train: Rows, held_out: Rows) -> Told:
    """Tell where keypoints are, of the descriptors that ship and that come and go in the training frames."""
    fitted, asked = (_pictures(frames, rows) for rows in (train, held_out))
    keypoints = learn_keypoints(load_encoder("shipped:descriptors"), [fitted])
    told = tuple(torch.cat([keypoints(part).patches[:, 0] for part in some.split(BATCH)]) for some in (fitted, asked))
    return lambda _: (told[0], told[1])


def _pictures(frames: Frames, rows: Rows) -> Tensor:
    """Pictures uint8 [n 3 side side]."""
    return torch.cat([picture(frames, row, SIDE) for row in rows])
