"""Tables of scores on disk: one Parquet file with a row per sample, in the order in which the samples were visited.

A table appears whole or not at all. While it is being made, finished rows lie in numbered parts in ``FILE.parts/``.
What decides the values (source, checkpoint, masks) rides in the metadata, and other values are not mixed in.
"""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pixio_pretrain.curation.scores import Scores
from pixio_pretrain.identity import differences
from pixio_robot.drafts import draft_of
from pixio_robot.errors import DataError

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("histogram_score", pa.float64()),
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("mae_loss", pa.float64()),
        pa.field("problem", pa.string()),
    ]
)
IDENTITY = b"pixio_pretrain"


class TableWriter:
    """A table in the making, taken up where an earlier process left it.

    Args:
        file: Where the table will be.
        identity: What decides the scores, in JSON's types.

    Attributes:
        done: Keys of the rows that are safe on disk, with why the sample cannot be decoded; None where it can.

    Raises:
        DataError: If the folder of parts holds other scores.
    """

    def __init__(self, file: Path, identity: Mapping[str, Any]) -> None:
        self.file = file
        self._folder = file.with_name(file.name + ".parts")
        self._schema = SCHEMA.with_metadata({IDENTITY: json.dumps(identity, sort_keys=True)})
        self._parts = sorted(self._folder.glob("*.parquet"))
        for part in self._parts:
            check_identity(part, identity, what=self._folder)
        self.done: dict[str, str | None] = {}
        for part in self._parts:
            rows = pq.read_table(part, columns=["key", "problem"])
            self.done |= zip(rows["key"].to_pylist(), rows["problem"].to_pylist(), strict=True)

    def save(self, rows: Sequence[Scores]) -> None:
        """Make rows safe."""
        if not rows:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        part = self._folder / f"{len(self._parts):06d}.parquet"
        self._write(part, [as_table(rows)])
        self._parts.append(part)

    def finish(self) -> None:
        """Join the parts into the table, and remove them."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._write(self.file, (pq.read_table(part) for part in self._parts))
        self.discard()

    def discard(self) -> None:
        """Remove the parts, such as those that a kill left beside a finished table."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _write(self, file: Path, tables: Iterable[pa.Table]) -> None:
        with draft_of(file) as draft, pq.ParquetWriter(draft, self._schema) as writer:
            for table in tables:
                writer.write_table(table.cast(self._schema))


def as_table(rows: Iterable[Scores]) -> pa.Table:
    """Rows as a table."""
    return pa.Table.from_pylist([asdict(row) for row in rows], schema=SCHEMA)


def read_table(file: Path) -> pa.Table:
    """Read a whole table.

    Raises:
        DataError: If there is none, or something else.
    """
    if not file.is_file():
        unfinished = file.with_name(file.name + ".parts").is_dir()
        raise DataError(
            f"There is no table of scores at {file.absolute()}"
            + ("; the command that makes it was stopped: give it again, and it continues." if unfinished else ".")
        )
    try:
        return pq.read_table(file, schema=SCHEMA)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file} is not a table of scores: {error}") from error


def read_identity(file: Path) -> dict[str, Any]:
    """What decided the scores in a table or a part.

    Raises:
        DataError: If it is something else.
    """
    try:
        return json.loads((pq.read_schema(file).metadata or {})[IDENTITY])
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DataError(f"{file} is not a table of scores; move it away, or choose another --table.") from error


def check_identity(file: Path, identity: Mapping[str, Any], *, what: Path) -> None:
    """Refuse scores that were made otherwise.

    Raises:
        DataError: Naming what differs, and ``what`` is in the way.
    """
    differing = differences(read_identity(file), identity)
    if differing:
        raise DataError(f"{what} holds other scores: {differing}. Choose another --table, or remove what is there.")
