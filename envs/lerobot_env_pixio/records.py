"""One line of JSON per episode: what was run, on what, and how it went. Every table is computed from these lines."""

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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


def write_records(path: str | Path, records: Iterable[EpisodeRecord]) -> None:
    """Append records to a file of JSON lines, creating it and its folder if need be.

    A last line that a kill tore off is removed first, so that nothing is ever appended to half a record.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        _mend(path)
    with path.open("a") as file:
        file.writelines(json.dumps(asdict(record), sort_keys=True) + "\n" for record in records)


def read_records(path: str | Path) -> list[EpisodeRecord]:
    """Read a file of JSON lines. A last line that a kill tore off is left out, which the log says.

    Raises:
        DataError: A line is no record; says which.
    """
    whole, torn = _split_off_torn_line(Path(path).read_bytes())
    if torn:
        logger.warning("%s: the last line was torn off by a kill; %d bytes of it are ignored", path, len(torn))
    records = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            records.append(EpisodeRecord(**json.loads(line)))
        except (TypeError, ValueError) as error:
            raise DataError(f"{path}, line {number} is no episode record: {error}") from error
    return records


def _split_off_torn_line(content: bytes) -> tuple[bytes, bytes]:
    """Part a file's whole lines from a beginning of one that a kill left at its end.

    A record ends with a line break. Without one, the line is torn unless all of it but that has been written.
    """
    whole, _, last = content.rpartition(b"\n")
    if not last:
        return content, b""
    try:
        json.loads(last)
    except ValueError:
        return whole, last
    return content, b""


def _mend(path: Path) -> None:
    """Make a file end with a whole line."""
    content = path.read_bytes()
    whole, torn = _split_off_torn_line(content)
    if torn:
        logger.warning("%s: the last line was torn off by a kill; %d bytes of it are removed", path, len(torn))
        with path.open("r+b") as file:
            file.truncate(len(content) - len(torn))
    elif whole and not whole.endswith(b"\n"):
        with path.open("ab") as file:
            file.write(b"\n")
