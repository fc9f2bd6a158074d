"""One line of JSON per episode: what was run, on what, and how it went. Every table is computed from these lines."""

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pixio_robot.drafts import write_whole
from pixio_robot.errors import DataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EpisodeRecord:
    """One evaluation episode.

    Attributes:
        suite: The simulator.
        task: The task.
        env_seed: The scene.
        policy_seed: The seed that the policy was trained from.
        arm: What is compared, such as "pixio" or "blind".
        encoder: Hash of the encoder's weights, or None if there is none.
        success: Whether the task was solved within the time limit; None if the episode broke off.
        total_reward: Sum of the rewards, the return.
        steps: Steps until the end of the episode.
        settings: Settings of the environment: cameras, size, rendering, shift, time limit.
        versions: Versions of the packages that decide how an episode goes.
        error: Why the episode broke off: the simulator's fault and no failure of the policy. None if it did not.
        video: The file that shows it, or None.
        milestone: The furthest of the task's milestones that was passed, "" before the first; None if the task has
            none, the episode broke off, or the record is of before there were any.
    """

    suite: str
    task: str
    env_seed: int
    policy_seed: int
    arm: str
    encoder: str | None
    success: bool | None
    total_reward: float
    steps: int
    settings: dict[str, Any]
    versions: dict[str, str]
    error: str | None = None
    video: str | None = None
    milestone: str | None = None


def write_records(path: str | Path, records: Iterable[EpisodeRecord]) -> None:
    """Write a file of JSON lines, whole or not at all, in the place of one that is there; its folder is made, too."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "".join(json.dumps(asdict(record), sort_keys=True) + "\n" for record in records))


def read_records(path: str | Path) -> list[EpisodeRecord]:
    """Read a file of JSON lines. A last line that was torn off is left out, which the log says.

    Raises:
        DataError: A line is no record; says which.
    """
    *lines, rest = Path(path).read_bytes().split(b"\n")
    if rest:  # a record ends with a line break
        try:
            json.loads(rest)
        except ValueError:
            logger.warning("%s: the last line was torn off by a kill; %d bytes of it are ignored", path, len(rest))
        else:
            lines.append(rest)
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(EpisodeRecord(**json.loads(line)))
        except (TypeError, ValueError) as error:
            raise DataError(f"{path}, line {number} is no episode record: {error}") from error
    return records
