"""From cells to tables: every number is computed from records and cell files, none is kept."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.cells import RESULT, Cell, cell_folder, is_done
from benchmark.estimates import Estimate, Table, difference_of, rate_of
from benchmark.settings import CLEAN, Benchmark, counted, task_name
from benchmark.shares import more_kept, share_kept
from lerobot_env_pixio import EpisodeRecord, Task, paired, read_records


@dataclass(frozen=True, kw_only=True)
class FilledCell:
    """What a cell left: its facts and its records by condition."""

    cell: Cell
    home: Path
    facts: Mapping[str, Any]
    records: Mapping[str, Sequence[EpisodeRecord]]


@dataclass(frozen=True, kw_only=True)
class Score:
    """How one arm fares under one condition.

    Attributes:
        successes: Bool [seeds scenes], scenes in the order that all arms share.
        rate: Over seeds and scenes.
        against: The difference to other arms, paired over scenes; by the other arm's name.
        p_values: Exact McNemar test against the same arms, one per training seed that both have.
        ends: How many episodes of all seeds succeeded, or else how far they came; see ``count_ends``.
    """

    successes: Table
    rate: Estimate
    against: Mapping[str, Estimate]
    p_values: Mapping[str, Sequence[float]]
    ends: Mapping[str, int]

    @property
    def counts(self) -> str:
        """Successes and episodes of all seeds."""
        return f"{int(self.successes.sum())}/{self.successes.size}"

    @property
    def per_seed(self) -> str:
        """The same of each seed."""
        return ", ".join(f"{int(seed.sum())}/{seed.size}" for seed in self.successes)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What is left of an arm's clean rate under a shift.

    Attributes:
        share: The share that is left; None where it cannot be told.
        less: The difference to another arm's share, paired over scenes; None where one of them cannot be told.
    """

    share: Estimate | None
    less: Estimate | None


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One task and one policy: every arm under every condition.

    Attributes:
        task: The task.
        policy: The policy.
        cells: Arm to its filled cells, by training seed.
        scores: Condition, then arm, to its score.
        kept: Shift, then arm, to the share of the clean rate that is kept under it.
        scenes: How many scenes were played to their end by all arms and seeds, under all conditions.
        notes: What a reader has to know about what is missing.
    """

    task: Task
    policy: str
    cells: Mapping[str, Sequence[FilledCell]]
    scores: Mapping[str, Mapping[str, Score]]
    kept: Mapping[str, Mapping[str, Kept]]
    scenes: int
    notes: Sequence[str]

    @property
    def name(self) -> str:
        """Task and policy."""
        return f"{task_name(self.task)}, {self.policy}"


def read_cell(folder: Path, cell: Cell, conditions: Sequence[str]) -> FilledCell:
    """Read what a cell left.

    Raises:
        DataError: A line of its records is no record.
    """
    home = cell_folder(folder, cell)
    records = {condition: read_records(home / f"records_{condition}.jsonl") for condition in conditions}
    return FilledCell(cell=cell, home=home, facts=json.loads((home / RESULT).read_text()), records=records)


def make_panels(config: Benchmark, cells: Sequence[Cell]) -> list[Panel]:
    """Make the panels of all tasks and policies that have a finished cell."""
    folder, conditions = Path(config.folder), list(config.conditions)
    panels = []
    for task in config.find_tasks():
        for policy in config.policies:
            here = [cell for cell in cells if cell.task == task and cell.policy == policy]
            filled: dict[str, list[FilledCell]] = {}
            for cell in here:
                if is_done(folder, cell):
                    filled.setdefault(cell.arm, []).append(read_cell(folder, cell, conditions))
            if filled:
                ordered = {arm: filled[arm] for arm in config.arm_names if arm in filled}
                references = [config.compared_with, "random"]
                panels.append(make_panel(task, policy, ordered, conditions, references, planned=len(here)))
    return panels


def make_panel(
    task: Task,
    policy: str,
    cells: Mapping[str, Sequence[FilledCell]],
    conditions: Sequence[str],
    references: Sequence[str],
    *,
    planned: int,
) -> Panel:
    """Score the arms of one task and policy.

    A scene that broke off, or that is missing, in one cell is left out of all: it is nobody's failure, and every arm
    keeps the same scenes.

    Args:
        task: The task.
        policy: The policy.
        cells: Arm to its filled cells.
        conditions: The clean one first.
        references: Arms that all others are compared with.
        planned: How many cells there are to be.
    """
    everyone = [one for filled in cells.values() for one in filled]
    played = [{record.env_seed for record in one.records[name]} for one in everyone for name in conditions]
    unended = [record for one in everyone for name in conditions for record in one.records[name] if record.error]
    broken = {record.env_seed for record in unended}
    scenes = sorted(set.intersection(*played) - broken)
    notes = []
    if len(everyone) < planned:
        notes.append(f"{len(everyone)} of {planned} cells are done; the rest is missing from the tables.")
    if lost := set.union(*played) - set.intersection(*played):
        notes.append(f"Missing from some cell's records, and left out everywhere: {counted(len(lost), 'scene')}.")
    if unended:
        reason = str(unended[0].error).strip().splitlines()[-1]
        notes.append(
            f"{counted(len(unended), 'episode')} broke off in the simulator, which is nobody's failure; left out "
            f"everywhere: {counted(len(broken), 'scene')}. The first said: {reason}"
        )
    if not scenes:
        return Panel(task=task, policy=policy, cells=cells, scores={}, kept={}, scenes=0, notes=notes)
    tables = {
        name: {
            arm: np.array([_successes(one.records[name], scenes) for one in filled]) for arm, filled in cells.items()
        }
        for name in conditions
    }
    clean, shifted = tables[CLEAN], {name: table for name, table in tables.items() if name != CLEAN}
    return Panel(
        task=task,
        policy=policy,
        cells=cells,
        scores={
            name: {
                arm: _score(arm, table, references, cells, count_ends(task, _played(cells[arm], name, scenes)))
                for arm in table
            }
            for name, table in tables.items()
        },
        kept={name: _kept(clean, table, references[0]) for name, table in shifted.items()},
        scenes=len(scenes),
        notes=notes,
    )


def count_ends(task: Task, records: Sequence[EpisodeRecord]) -> dict[str, int]:
    """Count episodes that succeeded and, of those that failed, how far they came: the furthest first.

    Empty if the task has no milestones, or some record is of before there were any.
    """
    if not task.milestones or any(record.milestone is None for record in records):
        return {}
    names = {"": f"failed, not {task.milestones[0]}"} | {name: f"failed, {name}" for name in task.milestones}
    ends = dict.fromkeys(["success", *reversed(names.values())], 0)
    for record in records:
        ends["success" if record.success else names[str(record.milestone)]] += 1
    return ends


def _played(cells: Sequence[FilledCell], condition: str, scenes: Sequence[int]) -> list[EpisodeRecord]:
    wanted = set(scenes)
    return [record for one in cells for record in one.records[condition] if record.env_seed in wanted]


def _score(
    arm: str,
    tables: Mapping[str, Table],
    references: Sequence[str],
    cells: Mapping[str, Sequence[FilledCell]],
    ends: Mapping[str, int],
) -> Score:
    mine = dict(zip((one.cell.seed for one in cells[arm]), tables[arm], strict=True))
    against, p_values = {}, {}
    for other in references:
        if other == arm or other not in tables:
            continue
        against[other] = difference_of(tables[arm], tables[other])
        theirs = dict(zip((one.cell.seed for one in cells[other]), tables[other], strict=True))
        both = [seed for seed in mine if seed in theirs]
        p_values[other] = [paired(mine[seed].tolist(), theirs[seed].tolist()).p_value for seed in both]
    return Score(successes=tables[arm], rate=rate_of(tables[arm]), against=against, p_values=p_values, ends=ends)


def _successes(records: Sequence[EpisodeRecord], scenes: Sequence[int]) -> list[bool]:
    found = {record.env_seed: bool(record.success) for record in records}
    return [found[scene] for scene in scenes]


def _kept(clean: Mapping[str, Table], shifted: Mapping[str, Table], other: str) -> dict[str, Kept]:
    found = {}
    for arm in clean:
        less = None
        if arm != other and other in clean:
            less = more_kept((clean[arm], shifted[arm]), (clean[other], shifted[other]))
        found[arm] = Kept(share=share_kept(clean[arm], shifted[arm]), less=less)
    return found
