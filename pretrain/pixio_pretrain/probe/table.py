"""Records to Markdown: every arm beside its baselines, with intervals, and the differences between arms."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pixio_pretrain.probe.keypoints import FILTERS
from pixio_pretrain.probe.looks import FINE
from pixio_pretrain.probe.records import ProbeRecord
from pixio_pretrain.probe.resampling import interval, resampled_means
from pixio_robot.errors import DataError

BASELINE = "training mean"
"""The arm that looks at nothing: what R2 is measured against."""


@dataclass(frozen=True, slots=True)
class Column:
    """One figure of the table.

    Attributes:
        head: What stands above it.
        target: See ``Measurement``.
        metric: See ``Measurement``; "r2" is 1 minus the ratio of the arm's squared distance to the baseline's.
        scale: From the metric's unit to the table's.
        digits: Digits after the point.
    """

    head: str
    target: str
    metric: str
    scale: float = 1.0
    digits: int = 3


POSITIONS = (
    Column("hand, cm", "hand", "distance", 100, 2),
    Column("hand, R²", "hand", "r2"),
    Column("object, cm", "object", "distance", 100, 2),
    Column("object, R²", "object", "r2"),
    Column("goal, cm", "goal", "distance", 100, 2),
    Column("goal, R²", "goal", "r2"),
)
DEPTH = (
    Column("depth RMSE, cm", "depth", "rmse", 100, 1),
    Column("AbsRel", "depth", "abs_rel"),
    Column("δ1", "depth", "delta1"),
)

OTHER_READ_OUTS = {
    "fine grid": f"a grid of at most {FINE} x {FINE} patches",
    "keypoints": f"the places of {FILTERS} learned keypoints",
    "patches": "the mean patch",
    "classes": "the mean class token",
}
"""What positions are read from beside the grid."""

NONE = "–"

Means = NDArray[np.float64]

_MEASURED = {"r2": "squared distance"}  # what a figure is computed from, where it is not itself measured


class Comparison:
    """Records, arranged for comparing.

    Args:
        records: Of all arms, on the same frames.

    Attributes:
        arms: Names of the arms, in the order of the records.
        cameras: Names of the cameras.
        seeds: Number of encoders of each arm.

    Raises:
        DataError: If arms were measured on different frames, or an arm lacks a measurement for one of its seeds.
    """

    def __init__(self, records: Iterable[ProbeRecord]) -> None:
        self._values: defaultdict[tuple[str, ...], dict[int, NDArray[np.float64]]] = defaultdict(dict)
        self._tasks: defaultdict[tuple[str, str], dict[str, list[int]]] = defaultdict(dict)
        self.seeds: dict[str, int] = {}
        self.cameras: list[str] = []
        store: str | None = None
        for record in records:
            found = record.measurement
            key = (record.arm, found.camera, found.target, found.features, found.task, found.metric)
            self._values[key][record.seed] = np.array(found.values)
            episodes = self._tasks[found.camera, found.target].setdefault(found.task, found.episodes)
            store = store or record.store
            if record.store != store or episodes != found.episodes:
                other = next(iter(self.seeds))
                raise DataError(f"The arms {other!r} and {record.arm!r} were measured on different frames.")
            self.seeds[record.arm] = max(self.seeds.get(record.arm, 0), record.seed + 1)
            self.cameras += [found.camera] if found.camera not in self.cameras else []
        self.arms = list(self.seeds)

    def tasks(self, camera: str, target: str) -> dict[str, list[int]]:
        """Give the held-out episodes of each task; empty if this camera says nothing of the target."""
        return self._tasks.get((camera, target), {})

    def means(self, arm: str, camera: str, column: Column, features: str, *, seed: int | None = None) -> Means | None:
        """Average one column's figure over tasks, with resamples (see ``resampled_means``).

        Args:
            arm: Whose.
            camera: A camera.
            column: The figure.
            features: What positions are read from.
            seed: One encoder of the arm alone; all of them when absent.

        Returns:
            [1 + DRAWS]; None if the camera says nothing of the target, or the arm has no such features.
        """
        tasks, features = self.tasks(camera, column.target), "each patch" if column.target == "depth" else features
        keys = [(arm, camera, column.target, features, task) for task in tasks]
        if not keys or any((*key, _MEASURED.get(column.metric, column.metric)) not in self._values for key in keys):
            return None
        return np.mean([self._of_task(key, column.metric, seed) for key in keys], axis=0)

    def _of_task(self, key: tuple[str, ...], metric: str, seed: int | None) -> Means:
        arm, camera, target, _, task = key
        by_seed = self._values[*key, _MEASURED.get(metric, metric)]
        if len(by_seed) < self.seeds[arm]:
            raise DataError(
                f"The arm {arm!r} has {self.seeds[arm]} encoders, but {key} was measured for {len(by_seed)}."
            )
        values = np.stack([by_seed[number] for number in ([seed] if seed is not None else sorted(by_seed))])
        means = resampled_means(values, arm=arm, stratum=task)
        if metric != "r2":
            return means
        baseline = self._values.get((BASELINE, camera, target, "grid", task, "squared distance"))
        if not baseline:
            raise DataError(f"R2 is measured against the arm {BASELINE!r}, of which there are no records.")
        return 1 - means / resampled_means(baseline[0][None], arm=BASELINE, stratum=task)


def to_markdown(comparison: Comparison) -> str:
    """Write all tables: per camera the arms, the first arm less each other one, other features, and every seed."""
    first, *others = comparison.arms
    parts = []
    for camera in comparison.cameras:
        parts += [f"## Camera {camera}", _counts(comparison, camera)]
        rows = {arm: _cells(comparison, arm, camera, "grid") for arm in comparison.arms}
        parts += [_table(comparison, camera, "arm", rows)]
        rows = {f"{first} − {arm}": _cells(comparison, first, camera, "grid", less=arm) for arm in others}
        parts += [f"Differences, paired over episodes ({first} less the other):"] if rows else []
        parts += [_table(comparison, camera, "difference", rows)] if rows else []
        for features, text in OTHER_READ_OUTS.items():
            rows = {arm: _cells(comparison, arm, camera, features) for arm in comparison.arms}
            rows = {arm: cells for arm, cells in rows.items() if any(cell != NONE for cell in cells[: -len(DEPTH)])}
            parts += (
                [f"Positions read from {text}:", _table(comparison, camera, "arm", rows, depth=False)] if rows else []
            )
        seeds = [(arm, seed) for arm in comparison.arms for seed in range(comparison.seeds[arm])]
        if len(seeds) > len(comparison.arms):
            rows = {f"{arm}, {seed}": _cells(comparison, arm, camera, "grid", seed=seed) for arm, seed in seeds}
            parts += ["Every encoder by itself (intervals over episodes alone):"]
            parts += [_table(comparison, camera, "arm, seed", rows)]
    return "\n\n".join(parts) + "\n"


def _counts(comparison: Comparison, camera: str) -> str:
    tasks = comparison.tasks(camera, "object")
    episodes = ", ".join(f"{task} {len(held_out)}" for task, held_out in tasks.items())
    depth = comparison.tasks(camera, "depth")["all"]
    seeds = ", ".join(f"{arm} {count}" for arm, count in comparison.seeds.items())
    return (
        f"n = {len(depth)} held-out episodes for depth; for positions {episodes}. Encoders per arm: {seeds}. "
        "In brackets the 95 % interval over episodes and encoders."
    )


def _cells(
    comparison: Comparison,
    arm: str,
    camera: str,
    features: str,
    *,
    less: str | None = None,
    seed: int | None = None,
) -> list[str]:
    """One row: a cell for each column."""
    cells = []
    for column in (*POSITIONS, *DEPTH):
        means = comparison.means(arm, camera, column, features, seed=seed)
        other = comparison.means(less, camera, column, features) if less else np.zeros(1)
        if means is None or other is None:
            cells.append(NONE)
            continue
        value, low, high = (column.scale * number for number in interval(means - other))
        form = f"{'+' if less else ''}.{column.digits}f"
        cells.append(f"{value:{form}} ({low:{form}} to {high:{form}})")
    return cells


def _table(comparison: Comparison, camera: str, head: str, rows: dict[str, list[str]], *, depth: bool = True) -> str:
    """Lay rows out, less the columns of which this camera says nothing."""
    columns = [*POSITIONS, *DEPTH]
    kept = [
        number
        for number, column in enumerate(columns)
        if comparison.tasks(camera, column.target) and (depth or column.target != "depth")
    ]
    lines = [[name, *(cells[number] for number in kept)] for name, cells in rows.items()]
    return markdown([head, *(columns[number].head for number in kept)], lines)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay a table out."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))
