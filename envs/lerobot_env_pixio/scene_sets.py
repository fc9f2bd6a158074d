"""Sets of rendered scenes: zarr v3 groups that several processes fill, and that a killed run takes up where it stopped.

Every scene of every task takes equally many rows, and is one chunk of each array. ``task`` int16 [n] is an index into
the attribute ``tasks``. Another array int32 [n] numbers the scenes: rows where it is -1 are still to be rendered, and
the attribute ``complete`` says that there are none.
"""

import math
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from tqdm import tqdm
from zarr.codecs import ZstdCodec

from lerobot_env_pixio import seeds
from lerobot_env_pixio.processes import run_jobs
from lerobot_env_pixio.provenance import reopen_group
from pixio_robot.errors import UnknownNameError

Render = Callable[[int], dict[str, NDArray[Any]]]
"""Seed to all arrays of a scene [rows ...] but ``task`` and its number. A scene follows its seed alone."""

Notes = dict[str, dict[str, Any]]
"""Group in the set to its attributes, which say what the rows of one task mean."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One array: the shape of a row, and what stands in it before it is rendered."""

    shape: tuple[int, ...] = ()
    dtype: str
    fill: float = -1
    compressed: bool = True
    meaning: str | None = None


@dataclass(frozen=True, kw_only=True)
class ScenePlan:
    """What a set is to hold.

    Attributes:
        folder: Where the group goes.
        tasks: Names.
        scenes: Of each task.
        rows: Of each scene.
        first_seed: Position of the first scene in the range of seeds kept for pictures.
        unit: What a scene is called, which is also the name of the array that numbers them.
        columns: All arrays by name.
        open_task: Makes a task ready; must be picklable.
    """

    folder: Path
    tasks: list[str]
    scenes: int
    rows: int
    first_seed: int
    unit: str
    columns: dict[str, Column]
    open_task: Callable[[str], AbstractContextManager[tuple[Render, Notes]]]


def render_set(plan: ScenePlan, *, made_by: dict[str, Any], workers: int) -> Any:
    """Render the scenes that are missing, and give the group.

    Args:
        plan: What it is to hold.
        made_by: All attributes of the group but "complete".
        workers: Processes.

    Raises:
        PixioRobotError: A task cannot be opened, which shows before anything is written.
        DataError: The folder holds something else.
    """
    seeds.draw(seeds.FRAMES, len(plan.tasks) * plan.scenes, first=plan.first_seed)
    group = reopen_group(plan.folder, wanted=made_by)
    done = np.zeros((len(plan.tasks), plan.scenes), bool)
    if group is not None:
        done = np.asarray(group[plan.unit][:: plan.rows]).reshape(done.shape) >= 0
    notes: Notes = {}
    for task in (plan.tasks[number] for number in np.flatnonzero(~done.all(axis=1))):
        try:
            with plan.open_task(task) as (_, found):  # bad names fail here, before long work
                notes |= found
        except UnknownNameError as error:
            raise UnknownNameError(f"{error.kind} for {task}", error.name, error.known) from error
    if group is None:
        group = _create(plan, made_by)
    for name, attributes in notes.items():
        group.require_group(name).attrs.update(attributes)
    _fill(plan, done, workers)
    group.attrs["complete"] = True
    return group


def _create(plan: ScenePlan, made_by: dict[str, Any]) -> Any:
    """Make the group with its arrays at full length; it appears with all of them."""
    aside = plan.folder.with_name(f".{plan.folder.name}.new")
    shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
    group = zarr.create_group(aside, attributes={**made_by, "complete": False})
    count = len(plan.tasks) * plan.scenes * plan.rows
    for name, column in plan.columns.items():
        group.create_array(
            name,
            shape=(count, *column.shape),
            chunks=(plan.rows, *column.shape),
            dtype=column.dtype,
            fill_value=column.fill,
            compressors=ZstdCodec(level=1) if column.compressed else None,
            attributes={"meaning": column.meaning} if column.meaning else None,
        )
    os.replace(aside, plan.folder)
    return zarr.open_group(plan.folder, mode="r+")


def _fill(plan: ScenePlan, done: NDArray[np.bool_], workers: int) -> None:
    """Render the missing scenes, a task's in as few jobs as keep all workers busy, since each compiles its model."""
    parts = math.ceil(workers / max(1, np.count_nonzero(~done.all(axis=1))))
    jobs = [
        (plan, task, part.tolist())
        for task, row in enumerate(done)
        for part in np.array_split(np.flatnonzero(~row), parts)
        if len(part)
    ]
    with tqdm(total=done.size, initial=int(done.sum()), desc="render", unit=plan.unit) as progress:
        for rendered in run_jobs(_render_scenes, jobs, workers=workers):
            progress.update(rendered)


def _render_scenes(job: tuple[ScenePlan, int, list[int]]) -> int:
    plan, task, missing = job
    group: Any = zarr.open_group(plan.folder, mode="r+")
    with plan.open_task(plan.tasks[task]) as (render, _):
        for number in missing:
            scene = task * plan.scenes + number
            where = slice(scene * plan.rows, (scene + 1) * plan.rows)
            for name, rows in render(seeds.FRAMES[plan.first_seed + scene]).items():
                group[name][where] = rows
            group["task"][where] = task
            group[plan.unit][where] = scene  # last: it marks the scene as whole
    return len(missing)
