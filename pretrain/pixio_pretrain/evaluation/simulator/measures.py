"""How far off what was read from simulated frames is: frame by frame, then averaged by scene."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixio_pretrain.evaluation.job import Values
from pixio_pretrain.evaluation.segmentation import count_overlaps
from pixio_pretrain.evaluation.simulator.answers import CLASSES, THINGS, Answers
from pixio_pretrain.geometry.metrics import depth_errors
from pixio_pretrain.geometry.mono import FARTHEST, NEAREST
from pixio_pretrain.probe.resampling import group_means

DEPTH = ("abs_rel", "rmse", "delta1")


def scene_values(read: Answers, true: Answers, scenes: NDArray[np.integer]) -> dict[str, Values]:
    """Measure answers, scene by scene, without any alignment.

    Args:
        read: What was read from frames.
        true: What they show.
        scenes: The scene of each.

    Returns:
        By metric, as ``resampled`` takes them: "abs_rel", "rmse" (metres) and "delta1" of depth between 0.05 and 4 m,
        taken frame by frame; intersections and unions for "miou" and "iou_CLASS"; "THING_px" and "THING_cm", the
        distance from the true position of what is visible of it; "camera_cm" and "camera_deg" of the camera's pose.
    """
    errors = depth_errors(read.depth, true.depth, min_depth=NEAREST, max_depth=FARTHEST)
    frames: dict[str, Values] = {name: errors[name] for name in DEPTH}
    for name in THINGS:
        frames[f"{name}_px"] = (read.pixels[name] - true.pixels[name]).norm(dim=1).double().numpy()
        frames[f"{name}_cm"] = 100 * (read.metres[name] - true.metres[name]).norm(dim=1).double().numpy()
    frames["camera_cm"] = 100 * (read.cam2world - true.cam2world)[:, :3, 3].norm(dim=1).double().numpy()
    frames["camera_deg"] = angles(read.cam2world[:, :3, :3], true.cam2world[:, :3, :3]).numpy()
    found = {name: group_means(values, scenes) for name, values in frames.items()}
    pairs = zip(read.labels, true.labels, strict=True)
    overlaps = np.stack([count_overlaps(ours, theirs, len(CLASSES)) for ours, theirs in pairs])
    counts = np.stack([overlaps[scenes == scene].sum(axis=0) for scene in np.unique(scenes)])
    found["miou"] = counts
    return found | {f"iou_{name}": counts[:, [number]] for number, name in enumerate(CLASSES) if name in THINGS}


def angles(a: Tensor, b: Tensor) -> Tensor:
    """Give the angle between rotations [b 3 3], in degrees [b], float64: exact near 0, where the cosine is flat."""
    chord = (a.double() - b.double()).flatten(1).norm(dim=1)  # 2 sqrt(2) sin(angle / 2)
    return torch.rad2deg(2 * torch.asin((chord / 8**0.5).clamp(max=1)))
