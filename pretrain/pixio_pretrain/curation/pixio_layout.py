"""Pixio's own layout of scores: one JSON file per tar shard, at ``FOLDER/{the shard's folder}/{shard}.json``.

Each file maps the names of the shard's members to their histogram_score, height, width and mae_loss.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from pixio_pretrain.curation.scores import MEASURES, Scores
from pixio_pretrain.curation.table import as_table
from pixio_robot.drafts import write_whole
from pixio_robot.errors import DataError


def write_pixio(table: pa.Table, folder: Path, *, shards: Sequence[str]) -> int:
    """Write the scores of tar shards as Pixio reads them; samples that cannot be decoded are left out, as Pixio has it.

    Args:
        table: Scores of samples whose keys are "shard.tar/member" or "folder/shard.tar/member".
        folder: What Pixio calls json_path.
        shards: Paths or URLs of the shards, which tell the folder where keys do not.

    Returns:
        The number of files.

    Raises:
        DataError: If two shards would share a file.
    """
    files: dict[Path, str] = {}
    root = PurePosixPath(min(shards, key=lambda shard: shard.count("/"))).parent.name
    rows = _rows(table.filter(table["problem"].is_null()).sort_by("key"))
    for shard, members_of in groupby(rows, key=lambda row: _split(row["key"])[0]):
        place = PurePosixPath(shard)
        file = folder / (place.parent.name or root) / f"{place.stem}.json"
        if file in files:
            raise DataError(
                f"{files[file]} and {shard} would both be written to {file}: score their folders one by one."
            )
        files[file] = shard
        members = {
            _split(row["key"])[1]: {name: row[name] for name in MEASURES if row[name] is not None} for row in members_of
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(members))
    return len(files)


def read_pixio(folder: Path) -> pa.Table:
    """Read a folder of such files: what FOLDER/a/b.json says of member c belongs to the sample "a/b.tar/c".

    Args:
        folder: json_path for a source whose folders hold shards, json_path/{folder} for one of those folders.

    Raises:
        DataError: If there are none, or one is damaged.
    """
    files = sorted(folder.rglob("*.json"))
    if not files:
        raise DataError(f"{folder} holds no JSON files of scores, and is not a table that `pixio-pretrain score` made.")
    return as_table(row for file in files for row in _read(file, file.relative_to(folder)))


def _read(file: Path, place: Path) -> Iterator[Scores]:
    shard = place.with_suffix("").as_posix().removesuffix(".tar") + ".tar"
    try:
        for member, found in json.loads(file.read_text()).items():
            yield Scores(key=f"{shard}/{member}", **{name: found.get(name) for name in MEASURES})
    except (ValueError, AttributeError) as error:
        raise DataError(f"{file} does not map member names to scores: {error}") from error


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    return (row for batch in table.to_batches(max_chunksize=4096) for row in batch.to_pylist())


def _split(key: str) -> tuple[str, str]:
    """Shard and member."""
    shard, _, member = key.partition(".tar/")
    return shard + ".tar", member
