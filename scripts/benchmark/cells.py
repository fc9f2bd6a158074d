"""The cells of a benchmark, and how processes share them out: a cell that is done is never done again."""

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from filelock import FileLock, Timeout

from benchmark.settings import Benchmark
from lerobot_env_pixio import Task
from pixio_robot.drafts import write_whole

logger = logging.getLogger(__name__)

RESULT = "cell.json"
"""The file that is written last: where it is, the cell is done."""
PATCHES, PRETRAINING = "patches.png", "pretraining.png"
"""What the policy's encoder makes of some frames, and what its pre-training left to look at."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One arm's policy on one task, of one training seed.

    Attributes:
        task: The task.
        policy: Which kind of policy.
        arm: What it sees through.
        seed: Of its weights and of the order of its training.
    """

    task: Task
    policy: str
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """Where it lies below ``cells/``."""
        return f"{self.task.suite}-{self.task.name}/{self.policy}/{self.arm}-{self.seed}"


def plan_cells(config: Benchmark) -> list[Cell]:
    """Give every cell, all arms of one training seed before the next seed: half a benchmark compares already."""
    axes = product(config.seeds, config.find_tasks(), config.policies, config.arm_names)
    return [Cell(task=task, policy=policy, arm=arm, seed=seed) for seed, task, policy, arm in axes]


def cell_folder(folder: str | Path, cell: Cell) -> Path:
    """Where a cell keeps its checkpoints, records, films and result."""
    return Path(folder) / "cells" / cell.name


def is_done(folder: str | Path, cell: Cell) -> bool:
    """Whether a cell's result is there."""
    return (cell_folder(folder, cell) / RESULT).is_file()


def finish(home: Path, facts: dict[str, object]) -> None:
    """Write a cell's result, whole or not at all."""
    write_whole(home / RESULT, json.dumps(facts, indent=2) + "\n")


@dataclass(frozen=True, kw_only=True)
class Worked:
    """What became of the cells in one process's hands.

    Attributes:
        failed: Cells that broke, each with what it said.
        elsewhere: Cells that other processes were at.
    """

    failed: dict[Cell, str]
    elsewhere: list[Cell]


def work(folder: str | Path, cells: Sequence[Cell], fill: Callable[[Cell, Path], None]) -> Worked:
    """Fill in what is not done and not in other hands; go on after a cell that breaks.

    Any number of processes may do this with one folder, also on several machines that share it. Each holds a lock on
    the cell that it is at, which ends with the process, however that ends.

    Args:
        folder: The benchmark's.
        cells: In the order in which to take them.
        fill: Does a cell, given its folder, and ends with ``finish``.
    """
    failed: dict[Cell, str] = {}
    waiting = list(cells)
    while True:
        taken, elsewhere = False, []
        for cell in waiting:
            home = cell_folder(folder, cell)
            if is_done(folder, cell) or cell in failed:
                continue
            home.mkdir(parents=True, exist_ok=True)
            lock = FileLock(home / ".lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                elsewhere.append(cell)
                continue
            try:
                if not is_done(folder, cell):  # another process may have been quicker
                    taken = True
                    logger.info("Now %s; %d of %d cells are done.", cell.name, count_done(folder, cells), len(cells))
                    fill(cell, home)
            except Exception as error:
                logger.exception("The cell %s broke; the others go on.", cell.name)
                failed[cell] = f"{type(error).__name__}: {error}"
            finally:
                lock.release()
        waiting = elsewhere
        if not elsewhere or not taken:  # a lock that was busy may have been let go while others were filled in
            return Worked(failed=failed, elsewhere=elsewhere)


def count_done(folder: str | Path, cells: Iterable[Cell]) -> int:
    """How many cells have their result."""
    return sum(is_done(folder, cell) for cell in cells)
