"""How good depth is on held-out sets: errors frame by frame, intervals over scenes, a table with every baseline."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pixio_pretrain.geometry.metrics import depth_errors
from pixio_pretrain.geometry.mono import FARTHEST, NEAREST, is_valid
from pixio_pretrain.geometry.robot_metrics import point_errors
from pixio_pretrain.geometry.sets import RgbdSet, Rows
from pixio_pretrain.probe.resampling import group_means, interval, resampled_means
from pixio_robot.drafts import write_whole
from pixio_robot.geometry.cameras import transform, unproject

Measure = Callable[[RgbdSet, Rows], Tensor]
"""Depth [b h w] of some frames of a set, metres."""

REGIONS = ("robot", "gripper", "object")
"""Parts of a scene that are measured by themselves, too; the rest is table, floor and walls."""

SHOWN = ("delta1", "delta1.03", "abs_rel", "rmse", "median_cm", *(f"{part}_median_cm" for part in REGIONS))
"""Columns of the table."""

_CHUNK = 64


def evaluate(sets: Mapping[str, RgbdSet], methods: Mapping[str, Measure]) -> list[dict[str, Any]]:
    """Measure every method on every set.

    Args:
        sets: Held-out sets by name.
        methods: By name.

    Returns:
        A row for each of both: "set", "method", "scenes", "metrics", where every metric has its "value", the mean over
        scenes of the means of their frames, and the ends "low" and "high" of its 95 % interval over scenes; scenes are
        drawn alike for all methods, so that differences are paired. "values" holds each metric by scene, None where a
        scene has none.
    """
    return [
        summarize(name, method, frame_errors(frames, measure), frames.scenes(np.arange(len(frames))))
        for name, frames in sets.items()
        for method, measure in methods.items()
    ]


def summarize(name: str, method: str, errors: Mapping[str, np.ndarray], scenes: np.ndarray) -> dict[str, Any]:
    """Make a row of ``evaluate`` from each metric's values [n], NaN where there is none, and their scenes [n]."""
    values = {metric: group_means(numbers, scenes) for metric, numbers in errors.items()}
    return {
        "set": name,
        "method": method,
        "scenes": len(np.unique(scenes)),
        "metrics": {
            metric: _estimate(numbers[np.isfinite(numbers)], arm=method, stratum=name)
            for metric, numbers in values.items()
            if np.isfinite(numbers).any()
        },
        "values": {metric: _listed(numbers) for metric, numbers in values.items()},
    }


def frame_errors(frames: RgbdSet, measure: Measure) -> dict[str, np.ndarray]:
    """Measure each frame by itself: those of ``depth_errors``, and centimetres in the base frame, each [n].

    Of the parts of a scene, too, where the set says what each pixel shows.
    """
    names, parts = frames.parts if frames.has_parts else ([], np.empty((0, 1, *frames.size), np.int8))
    flat, found = parts.reshape(-1, *frames.size), []
    for rows in np.array_split(np.arange(len(frames)), -(-len(frames) // _CHUNK)):
        predicted, truth = measure(frames, rows), frames.depths(rows)
        errors = depth_errors(predicted, truth, min_depth=NEAREST, max_depth=FARTHEST)
        intrinsics, cam2world = frames.calibration(rows)
        clouds = [transform(cam2world, unproject(depth, intrinsics)) for depth in (predicted, truth)]
        for number in range(len(rows)):
            row = {metric: values[number] for metric, values in errors.items()}
            valid = is_valid(truth[number])
            if valid.any():
                regions = {part: flat[rows[number]] == names.index(part) for part in REGIONS if part in names}
                row |= point_errors(clouds[0][number], clouds[1][number], valid, regions=regions)
            found.append(row)
    metrics = list(dict.fromkeys(metric for row in found for metric in row))
    return {metric: np.array([row.get(metric, np.nan) for row in found]) for metric in metrics}


def write_tables(folder: Path, *tables: tuple[Sequence[Mapping[str, Any]], Sequence[str]], **facts: Any) -> None:
    """Write ``evaluation.json`` with all that was measured, then ``evaluation.md``; each whole or not.

    Args:
        folder: Where.
        tables: Rows, as ``evaluate`` gives them, and the columns to show of them.
        facts: What else is known.
    """
    rows = [row for table, _ in tables for row in table]
    text = {
        "evaluation.json": json.dumps({"facts": facts, "rows": rows}, indent=1),
        "evaluation.md": "\n\n".join(to_markdown(table, columns) for table, columns in tables),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, words in text.items():
        write_whole(folder / name, words + "\n")


def to_markdown(rows: Sequence[Mapping[str, Any]], shown: Sequence[str] = SHOWN) -> str:
    """Draw the tables: for each set a line for each method, and the last method less the others, paired over scenes.

    In brackets 95 % intervals over scenes.
    """
    columns = [name for name in shown if any(name in row["metrics"] for row in rows)]
    lines = []
    for name in dict.fromkeys(row["set"] for row in rows):
        *others, last = mine = [row for row in rows if row["set"] == name]
        lines += [f"**{name}**, {last['scenes']} scenes", ""]
        lines += _table("method", columns, [(row["method"], row["metrics"]) for row in mine])
        if others:
            lines += _table(
                f"{last['method']} less", columns, [(row["method"], _less(last, row, columns)) for row in others]
            )
    return "\n".join(lines).rstrip()


def _table(head: str, columns: Sequence[str], rows: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    lines = [f"| {head} | {' | '.join(columns)} |", "|" + "---|" * (len(columns) + 1)]
    lines += [f"| {name} | {' | '.join(_cell(metrics.get(column)) for column in columns)} |" for name, metrics in rows]
    return [*lines, ""]


def _less(row: Mapping[str, Any], other: Mapping[str, Any], columns: Sequence[str]) -> dict[str, dict[str, float]]:
    """The difference of two methods in each metric, over the scenes that both have, with its interval."""
    found = {}
    for column in columns:
        if column in row["values"] and column in other["values"]:
            less = np.array(row["values"][column], float) - np.array(other["values"][column], float)
            if (known := less[np.isfinite(less)]).size:
                found[column] = _estimate(known, arm=row["method"], stratum=row["set"])
    return found


def _estimate(values: np.ndarray, *, arm: str, stratum: str) -> dict[str, float]:
    """The mean of one number per scene, and its interval."""
    drawn = interval(resampled_means(values[None], arm=arm, stratum=stratum))
    return dict(zip(("value", "low", "high"), drawn, strict=True))


def _cell(metric: Mapping[str, float] | None) -> str:
    return "" if metric is None else f"{metric['value']:.3g} [{metric['low']:.3g}, {metric['high']:.3g}]"


def _listed(values: np.ndarray) -> list[float | None]:
    """In JSON's types, which have no word for NaN."""
    return [float(value) if np.isfinite(value) else None for value in values]
