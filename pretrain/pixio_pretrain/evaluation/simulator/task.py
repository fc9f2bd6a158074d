"""The task ``simulator``: probes on multi-view colour and depth sets, every held-out set by itself."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pixio_pretrain.evaluation.job import Job, Outcome, Values
from pixio_pretrain.evaluation.loop import Recipe, fit
from pixio_pretrain.evaluation.simulator.answers import true_answers
from pixio_pretrain.evaluation.simulator.features import see_frames
from pixio_pretrain.evaluation.simulator.linear import LinearProbes
from pixio_pretrain.evaluation.simulator.measures import scene_values
from pixio_pretrain.evaluation.simulator.pictures import picture_of
from pixio_pretrain.evaluation.simulator.small import SmallProbes
from pixio_pretrain.geometry.sets import RgbdSet, read_held_out
from pixio_pretrain.probe.resampling import resampled
from pixio_robot.errors import SettingError, UnknownNameError
from pixio_robot.runs import alone

HEADS = ("linear", "small")
FEATURES = "simulator-features"
_SUBSET = 7  # stream of the draw of training scenes, so that it is no other draw of the same seed


@dataclass(kw_only=True)
class SimulatorConfig:
    """Depth, segmentation, positions and camera pose from frames of ``scripts/render_rgbd.py``.

    A seed draws the training scenes, and the weights of "random:NAME".

    Attributes:
        head: "linear" (a linear map per question, each solved to its optimum), or "small" (one hidden layer on every
            patch, trained for all questions at once).
        grid: Side of the grid that patches are averaged over, where linear probes read positions and poses.
        scenes: Share of the training scenes of each task that are learnt from; which ones, the seed draws.
        dense_frames: Bound on the frames that linear probes learn depth and labels from.
        hidden: Width of the small head's hidden layer.
        recipe: How the small head is trained; see ``Recipe``.
    """

    name: str = "simulator"
    head: str = "linear"
    grid: int = 4
    scenes: float = 0.8
    dense_frames: int = 600
    hidden: int = 256
    recipe: Recipe = field(
        default_factory=lambda: Recipe(epochs=10, batch_size=32, lr=1e-3, warmup=0.1, decay="cosine")
    )

    def __post_init__(self) -> None:
        if self.head not in HEADS:
            raise UnknownNameError("head", self.head, HEADS)
        if not 0 < self.scenes <= 1 or min(self.grid, self.dense_frames, self.hidden) < 1:
            raise SettingError(
                "task.scenes must lie in (0, 1], and task.grid, task.dense_frames and task.hidden be at least 1."
            )

    @property
    def title(self) -> str:
        """Task and head."""
        return f"simulator-{self.head}"

    def run(self, job: Job) -> Outcome:
        """Learn from the training set, and measure every held-out one."""
        train, held_out = RgbdSet.read(job.data / "train"), read_held_out(job.data)
        data = {name: describe(frames) for name, frames in {"train": train, **held_out}.items()}
        digest = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
        name = f"{job.encoder.fingerprint[:16]}-{digest[:8]}-{job.config.precision}"
        store = Path(job.config.folder).expanduser() / FEATURES / name
        refusal = SettingError(f"Another process encodes the same frames into {store}. Wait for it.")
        with alone(store / ".lock", refusal):
            seen = {
                name: see_frames(frames, job, store, name, cells=self.grid, data=data[name])
                for name, frames in {"train": train, **held_out}.items()
            }
        scenes, true = train.scenes(np.arange(len(train))), true_answers(train)
        rows = draw_frames(train, self.scenes, job.config.seed)
        if self.head == "linear":
            probes = LinearProbes.fit(seen["train"], true, scenes, rows, dense_frames=self.dense_frames)
        else:
            probes = SmallProbes(seen["train"], true, rows, seed=job.config.seed, hidden=self.hidden)
            fit(probes, self.recipe, job, data=data)
        images: dict[str, Values] = {}
        pictures = {}
        for name, frames in held_out.items():
            read, known = probes(seen[name]), true_answers(frames)
            values = scene_values(read, known, frames.scenes(np.arange(len(frames))))
            images |= {f"{name}/{metric}": numbers for metric, numbers in values.items()}
            row = len(frames) // 2
            pictures[f"{name}.png"] = picture_of(frames.images(np.array([row]))[0], read, known, row)
        metrics = {name: float(resampled(values, "", draws=0)[0]) for name, values in images.items()}
        facts = {"training_frames": len(rows), "training_scenes": len(np.unique(scenes[rows.numpy()]))}
        return Outcome(metrics=metrics, images=images, data=data, facts=facts, pictures=pictures)


def describe(frames: RgbdSet) -> dict[str, Any]:
    """Say what a set is: how many frames and scenes, of what size, and a hash of all it shows."""
    digest = hashlib.sha256()
    for array in (frames.color, frames.depth, frames.cam2world.numpy(), frames.scene):
        digest.update(np.ascontiguousarray(array).data)
    return {
        "set": f"{frames.facts.get('suite', frames.folder.name)} {frames.size[1]} x {frames.size[0]}",
        "images": len(frames),
        "scenes": len(np.unique(frames.scene)),
        "digest": digest.hexdigest()[:16],
    }


def draw_frames(frames: RgbdSet, share: float, seed: int) -> Tensor:
    """Draw a share of the scenes of each task, without replacement: all frames of these, ascending."""
    random, kept = np.random.default_rng([seed, _SUBSET]), []
    for task in np.unique(frames.task):
        scenes = np.unique(frames.scene[frames.task == task])
        kept.append(random.permutation(scenes)[: max(1, round(share * len(scenes)))])
    return torch.from_numpy(np.flatnonzero(np.isin(frames.scenes(np.arange(len(frames))), np.concatenate(kept))))
