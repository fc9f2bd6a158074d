"""One JSON object per line: what was read, from what, by whom. Every table is computed from these lines."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pixio_pretrain.probe.geometry import Measurement
from pixio_robot.drafts import write_whole
from pixio_robot.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeRecord:
    """One measurement of one encoder.

    Attributes:
        arm: What is compared, such as "pixio".
        seed: Which of its encoders, counted from 0.
        encoder: Hash of the weights; None where there is no encoder.
        training: What is known of how it came to be.
        store: Hash of the frames and their split.
        measurement: What was found.
    """

    arm: str
    seed: int
    encoder: str | None
    training: dict[str, Any]
    store: str
    measurement: Measurement


def write_records(path: Path, records: Iterable[ProbeRecord]) -> None:
    """Write a file of JSON lines, whole or not at all."""
    write_whole(path, "".join(json.dumps(asdict(record), sort_keys=True) + "\n" for record in records))


def read_records(path: Path) -> list[ProbeRecord]:
    """Read a file of JSON lines.

    Raises:
        DataError: A line is no record; says which.
    """
    records = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            facts = json.loads(line)
            records.append(ProbeRecord(**(facts | {"measurement": Measurement(**facts["measurement"])})))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}, line {number} is no record of a probe: {error!r}") from error
    return records
