"""Where things are and how far: linear read-outs of positions and depth from frozen features, in metres.

Positions are read from one vector per frame, for each task by itself, since "the object" is another thing in each.
Depth is read from each patch by the same weights, over all tasks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixio_pretrain.components import component_colors
from pixio_pretrain.data import Frames
from pixio_pretrain.probe.depth import DepthReadOut, depth_errors
from pixio_pretrain.probe.keypoints import Keypoints
from pixio_pretrain.probe.looks import Look
from pixio_pretrain.probe.resampling import group_means
from pixio_pretrain.probe.ridge import fit_best
from pixio_pretrain.probe.truth import Truth
from pixio_robot.errors import DataError
from pixio_robot.tokens import Tokens

Rows = NDArray[np.int64]

SHOWN = 6
"""Held-out frames of each camera whose depth maps are kept to be looked at."""

PATCHES = "each patch"
"""Among a frame's features, the patches themselves."""

STILL = 1e-3
"""Metres; a position that varies less is not probed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """How well one thing was read from held-out frames.

    Attributes:
        camera: Whose frames.
        task: What they show; "all" for depth.
        target: "hand", "object", "goal" or "depth".
        features: What it was read from: a key of ``Look.features``, or "keypoints"; "each patch" for depth.
        metric: "distance" (metres) and "squared distance" for positions; "rmse" (metres), "abs_rel" and "delta1" for
            depth, taken frame by frame.
        ridge: The penalty that was chosen.
        episodes: The held-out episodes.
        values: Mean of the metric over the frames of each of them.
    """

    camera: str
    task: str
    target: str
    features: str
    metric: str
    ridge: float
    episodes: list[int]
    values: list[float]


@dataclass(frozen=True, kw_only=True, slots=True)
class GeometryProbe:
    """What a look is worth.

    Attributes:
        measurements: In numbers.
        predictions: To be looked at. "CAMERA/TASK/TARGET": positions [m 3] of all held-out frames, read from the grid;
            "CAMERA/depth": maps [s g h] of a few held-out frames, "CAMERA/features": their patches as colours
            [s rows columns 3] (see ``component_colors``), and "CAMERA/shown": their rows [s].
    """

    measurements: list[Measurement] = field(default_factory=list)
    predictions: dict[str, NDArray[np.float32 | np.int64]] = field(default_factory=dict)

    def add(self, errors: Mapping[str, Tensor], episodes: NDArray[np.integer[Any]], **facts: str | float) -> None:
        """Note errors by metric, each [m], of frames of these episodes [m]."""
        names = np.unique(episodes)
        for metric, values in errors.items():
            means = group_means(values.numpy(), episodes)
            seen = np.isfinite(means)
            rounded = [round(float(mean), 7) for mean in means[seen]]
            measured = {"metric": metric, "episodes": names[seen].tolist(), "values": rounded}
            self.measurements.append(Measurement(**facts, **measured))  # pyright: ignore[reportArgumentType]


def probe_geometry(
    look: Look, frames: Frames, truth: Truth, train: Rows, held_out: Rows, *, most_depth: int = 1000
) -> GeometryProbe:
    """Read positions and depth from the frames of every camera.

    Looks once at each frame; keeps the features of one camera's frames, and their patches in half precision.

    Args:
        look: What turns frames into features.
        frames: Frames that know their tasks.
        truth: The answers, for the same rows.
        train: Rows to fit on.
        held_out: Rows to measure on, of other episodes.
        most_depth: Bound on the frames that the read-out of depth is fitted to, evenly spread.

    Raises:
        DataError: If frames do not name their tasks, answers are for other frames, or episodes are shared.
    """
    if frames.tasks is None or len(truth.camera) != len(frames):
        raise DataError(f"{len(frames)} frames, which must name their tasks, and answers to {len(truth.camera)}.")
    if np.isin(frames.episodes[train], frames.episodes[held_out]).any():
        raise DataError("Episodes are shared between training and held-out frames, so the probe would measure memory.")
    found = GeometryProbe()
    for number, camera in enumerate(truth.cameras):
        fitted, asked = (rows[truth.camera[rows] == number] for rows in (train, held_out))
        probe = _CameraProbe(found, camera, look, frames, truth)
        seen, grid, read_depth = probe.training_features(fitted, most_depth)
        asked_of = probe.held_out_features(asked, read_depth)
        for task in np.unique(frames.tasks[asked]):
            here, there = (torch.from_numpy(frames.tasks[rows] == task) for rows in (fitted, asked))
            rows = fitted[here.numpy()], asked[there.numpy()]
            parts = {name: (seen[name][here], asked_of[name][there]) for name in seen}
            patches = parts.pop(PATCHES)
            answers = torch.from_numpy(np.concatenate([truth.position(name, rows[0]) for name in truth.world], axis=1))
            keypoints = Keypoints.learn(patches[0], grid, answers, frames.episodes[rows[0]])
            parts["keypoints"] = keypoints(patches[0]), keypoints(patches[1])
            for name, features in parts.items():
                probe.measure_positions({"task": frames.task_names[int(task)], "features": name}, features, *rows)
    return found


def measure_position(
    found: GeometryProbe,
    facts: dict[str, str],
    features: tuple[Tensor, ...],
    frames: Frames,
    truth: Truth,
    train: Rows,
    held_out: Rows,
) -> None:
    """Fit a position to the features of training frames, and note how far off that of held-out ones is.

    Args:
        found: Where to note it.
        facts: "camera", "task", "target" and "features" of the measurement.
        features: Those of training frames [n f] and of held-out ones [m f].
        frames: Frames that know their episodes.
        truth: The answers, for the same rows.
        train: Rows [n].
        held_out: Rows [m].
    """
    camera, task, target = facts["camera"], facts["task"], facts["target"]
    answers = torch.from_numpy(truth.position(target, train))
    if answers.std(dim=0).norm() < STILL:
        return  # a camera on the hand always has the hand at the same place
    read_out = fit_best(features[0], answers, frames.episodes[train])
    predicted = read_out(features[1])
    squared = (predicted - torch.from_numpy(truth.position(target, held_out))).square().sum(dim=1)
    errors = {"distance": squared.sqrt(), "squared distance": squared}
    found.add(errors, frames.episodes[held_out], ridge=read_out.ridge, **facts)
    if facts["features"] == "grid":
        found.predictions[f"{camera}/{task}/{target}"] = predicted.numpy()


@dataclass(frozen=True, slots=True)
class _CameraProbe:
    """One look, at the frames of one camera."""

    found: GeometryProbe
    camera: str
    look: Look
    frames: Frames
    truth: Truth

    def training_features(self, rows: Rows, most: int) -> tuple[dict[str, Tensor], tuple[int, int], DepthReadOut]:
        """Look at training frames: features by name, grid of patches, and depth as learnt from ``most`` frames."""
        kept = _spread(rows, most)
        features, patches, grid = [], [], (0, 0)
        for chunk, tokens in self.look.tokens(self.frames, rows):
            features.append(self._features(tokens))
            patches.append(tokens.patches[torch.from_numpy(np.isin(chunk, kept))])
            grid = tokens.grid
        depth = torch.from_numpy(self.truth.depth[kept])
        read_depth = DepthReadOut.fit(torch.cat(patches), grid, depth, self.frames.episodes[kept])
        return _join(features), grid, read_depth

    def held_out_features(self, rows: Rows, read_depth: DepthReadOut) -> dict[str, Tensor]:
        """Look at held-out frames: note how well depth is read from them, and give their features by name."""
        shown = _spread(rows, SHOWN)
        features, errors, maps, patches, grid = [], [], [], [], (0, 0)
        for chunk, tokens in self.look.tokens(self.frames, rows):
            features.append(self._features(tokens))
            predicted = read_depth(tokens)
            errors.append(depth_errors(predicted, torch.from_numpy(self.truth.depth[chunk])))
            kept = torch.from_numpy(np.isin(chunk, shown))
            maps.append(predicted[kept])
            patches.append(tokens.patches[kept])
            grid = tokens.grid
        facts = {"camera": self.camera, "task": "all", "target": "depth", "features": "each patch"}
        self.found.add(_join(errors), self.frames.episodes[rows], ridge=read_depth.read_out.ridge, **facts)
        self.found.predictions[f"{self.camera}/depth"] = torch.cat(maps).numpy()
        colors = component_colors(torch.cat(patches)).unflatten(1, grid)
        self.found.predictions[f"{self.camera}/features"] = colors.numpy()
        self.found.predictions[f"{self.camera}/shown"] = shown
        return _join(features)

    def _features(self, tokens: Tokens) -> dict[str, Tensor]:
        return self.look.features(tokens) | {PATCHES: tokens.patches.half()}

    def measure_positions(
        self, facts: dict[str, str], features: tuple[Tensor, Tensor], train: Rows, held_out: Rows
    ) -> None:
        """Read every position from these features."""
        for target in self.truth.world:
            where = {"camera": self.camera, "target": target, **facts}
            measure_position(self.found, where, features, self.frames, self.truth, train, held_out)


def _spread(rows: Rows, most: int) -> Rows:
    """At most so many rows, evenly spread."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64))]


def _join(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
