"""Pictures of what linear probes read from encoders: depth maps, and positions against the truth."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from pixio_pretrain.data import Frames
from pixio_pretrain.probe import BASELINE, Comparison, Truth
from pixio_pretrain.probe.depth import FARTHEST
from pixio_pretrain.probe.resampling import interval
from pixio_pretrain.probe.table import POSITIONS as COLUMNS
from pixio_pretrain.probe.truth import POSITIONS

Predictions = Mapping[str, Mapping[str, NDArray[np.float32]]]
"""Arm to ``GeometryProbe.predictions`` of its first encoder."""

AXES = (("right", "#d1242f"), ("down", "#1a7f37"), ("forward", "#1f6feb"))


def draw_depth(file: Path, frames: Frames, truth: Truth, camera: str, predictions: Predictions) -> None:
    """Draw held-out frames, their true depth, and what was read from each arm, in the same colours."""
    told = {arm: found for arm, found in predictions.items() if f"{camera}/depth" in found}
    rows = next(iter(told.values()))[f"{camera}/shown"].astype(int)
    sky = truth.depth[rows] > FARTHEST
    low, high = np.quantile(truth.depth[rows][~sky], (0.01, 0.95))
    maps = {"truth": truth.depth[rows], **{arm: found[f"{camera}/depth"] for arm, found in told.items()}}
    shown = {name: np.where(sky, np.nan, depth) for name, depth in maps.items()}
    figure, grid = _beside_frames(frames, rows, shown, room=0.4, vmin=low, vmax=high, cmap="turbo_r")
    figure.colorbar(grid[0, 1].images[0], ax=grid, label="metres; sky is white", shrink=0.6)
    figure.savefig(file, dpi=110)


def draw_features(file: Path, frames: Frames, camera: str, predictions: Predictions) -> None:
    """Draw held-out frames, and each arm's patches of them in the colours of their first three principal components."""
    arms = {arm: found for arm, found in predictions.items() if f"{camera}/features" in found and arm != BASELINE}
    if not arms:
        return
    rows = next(iter(arms.values()))[f"{camera}/shown"].astype(int)
    shown = {arm: found[f"{camera}/features"] for arm, found in arms.items()}
    figure, _ = _beside_frames(frames, rows, shown, room=0.3, interpolation="nearest")
    figure.savefig(file, dpi=110)


def draw_positions(
    file: Path, frames: Frames, truth: Truth, camera: str, held_out: NDArray[np.int64], predictions: Predictions
) -> None:
    """Draw predicted against true positions, less the task's mean: one row per target, one column per arm."""
    asked = held_out[truth.camera[held_out] == truth.cameras.index(camera)]
    assert frames.tasks is not None  # the probe has seen to it
    targets = [name for name in POSITIONS if _of(next(iter(predictions.values())), camera, name)]
    figure = Figure(figsize=(2.1 * len(predictions), 2.3 * len(targets) + 0.3), layout="constrained")
    grid = figure.subplots(len(targets), len(predictions), squeeze=False, sharex="row", sharey="row")
    for axes, target in zip(grid, targets, strict=True):
        for axis, (arm, found) in zip(axes, predictions.items(), strict=True):
            for key, predicted in _of(found, camera, target).items():
                rows = asked[frames.tasks[asked] == list(frames.task_names).index(key)]
                true = truth.position(target, rows)
                x, y = 100 * (true - true.mean(axis=0)).T, 100 * (predicted - true.mean(axis=0)).T
                for number, (name, color) in enumerate(AXES):
                    axis.plot(x[number], y[number], ".", ms=2, color=color, alpha=0.4, label=name)
            axis.axline((0, 0), slope=1, color="0.5", lw=0.8)
            axis.set_title(f"{arm}: {target}", fontsize=8)
            axis.tick_params(labelsize=7)
    grid[-1, 0].set_xlabel("true, cm from the task's mean", fontsize=8)
    grid[-1, 0].set_ylabel("read, cm", fontsize=8)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles[:3], labels[:3], loc="outside lower right", ncols=3, fontsize=7, markerscale=4, frameon=False)
    figure.savefig(file, dpi=110)


def draw_scaling(file: Path, comparison: Comparison, views: Mapping[str, int], features: str) -> None:
    """Draw errors of positions against the images an arm was trained on; arms without training are lines across.

    Args:
        file: Where the picture goes.
        comparison: All records.
        views: Arm to images seen, those trained.
        features: What positions are read from.
    """
    panels = [
        (camera, column)
        for camera in comparison.cameras
        for column in COLUMNS
        if column.metric == "distance" and comparison.tasks(camera, column.target)
    ]
    figure = Figure(figsize=(3.4 * len(panels), 3.2), layout="constrained")
    for axis, (camera, column) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for number, arm in enumerate(comparison.arms):
            means = comparison.means(arm, camera, column, features)
            if means is None or arm == BASELINE:
                continue
            value, low, high = interval(column.scale * means)
            color = f"C{number % 10}"
            if arm in views:
                axis.errorbar(
                    views[arm], value, [[value - low], [high - value]], fmt="o", color=color, capsize=2, label=arm
                )
            else:
                axis.axhline(value, color=color, ls=":", lw=1.2, label=arm)
        axis.set(xscale="log", xlabel="images seen in training", title=f"{camera}: {column.head}")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=7, frameon=False)
    figure.savefig(file, dpi=110)


def _beside_frames(
    frames: Frames, rows: NDArray[np.int64], shown: Mapping[str, NDArray[Any]], *, room: float, **look: Any
) -> tuple[Figure, NDArray[Any]]:
    """Frames [n] in a column, and beside each what others show of it [n ...]; ``room`` is for titles, inches."""
    columns = ["frame", *shown]
    figure = Figure(figsize=(1.6 * len(columns), 1.65 * len(rows) + room), layout="constrained")
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    for line, (axes, row) in enumerate(zip(grid, rows, strict=True)):
        axes[0].imshow(np.asarray(frames.image(row)))
        for axis, pictures in zip(axes[1:], shown.values(), strict=True):
            axis.imshow(pictures[line], **look)
    for axis, name in zip(grid[0], columns, strict=True):
        axis.set_title(name, fontsize=8)
    for axis in grid.flat:
        axis.set_axis_off()
    return figure, grid


def _of(found: Mapping[str, NDArray[np.float32]], camera: str, target: str) -> dict[str, NDArray[np.float32]]:
    """Positions by task."""
    keys = {tuple(key.split("/")): key for key in found}
    return {parts[1]: found[key] for parts, key in keys.items() if len(parts) == 3 and parts[::2] == (camera, target)}
