"""What training takes from a scored source: some samples never, others by chance."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pixio_pretrain.curation.pixio_layout import read_pixio
from pixio_pretrain.curation.table import read_table
from pixio_robot.errors import DataError, SettingError

HIGHEST_ENTROPY = 8
HASH = np.dtype("<u8")


@dataclass(kw_only=True)
class CurationConfig:
    """Which samples to train on; Pixio's values for web images are 4.5, 320 and soft sampling (arXiv 2512.15715, 3.3).

    Attributes:
        table: A table of scores that ``pixio-pretrain score`` made, or a folder of Pixio's JSON files. None takes all.
        histogram_above: Drop samples whose histogram score is not above this.
        resolution_from: Drop samples of smaller height or width, in pixels.
        soft_sampling: Keep a sample with probability min(reconstruction loss, 1).
        unlisted: What becomes of samples that the table does not list: "refuse" stops the run, "drop" drops them.
    """

    table: str | None = None
    histogram_above: float | None = None
    resolution_from: int | None = None
    soft_sampling: bool = False
    unlisted: str = "refuse"

    def __post_init__(self) -> None:
        if self.table is None and self.rules:
            raise SettingError(
                f"curation: {', '.join(self.rules)} needs curation.table, which `pixio-pretrain score` makes."
            )
        if self.histogram_above is not None and not 0 <= self.histogram_above < HIGHEST_ENTROPY:
            raise SettingError(
                f"curation.histogram_above must lie in [0, {HIGHEST_ENTROPY}) bits, not {self.histogram_above}."
            )
        if self.resolution_from is not None and self.resolution_from < 1:
            raise SettingError(f"curation.resolution_from must be at least 1 pixel, not {self.resolution_from}.")
        if self.unlisted not in ("refuse", "drop"):
            raise SettingError(f"curation.unlisted must be refuse or drop, not {self.unlisted!r}.")

    @property
    def rules(self) -> list[str]:
        """Names of the settings that are in force."""
        values = {name: getattr(self, name) for name in ("histogram_above", "resolution_from")}
        return [name for name, value in values.items() if value is not None] + ["soft_sampling"] * self.soft_sampling

    def build(self) -> "Curation | None":
        """Read the table; None where nothing is curated.

        Raises:
            DataError: If the table cannot be read, lists a sample twice or lacks what a rule needs, or if nothing is
                kept.
        """
        if self.table is None:
            return None
        path = Path(self.table).expanduser()
        return Curation(read_pixio(path) if path.is_dir() else read_table(path), self)


class Curation:
    """Says with which probability to keep a sample.

    Keys are held as 64-bit hashes, so that a table of ten million samples takes 120 MB in all worker processes together
    and a look-up is a binary search.

    Args:
        table: Scores, as ``read_table`` gives them.
        config: The rules.

    Raises:
        DataError: As for ``CurationConfig.build``.
    """

    def __init__(self, table: pa.Table, config: CurationConfig) -> None:
        self.config = config
        chances = keep_chances(table, config)
        if not chances.any():
            raise DataError(f"{config.table}: the rules ({', '.join(config.rules)}) keep none of {len(table)} samples.")
        keys = (key for batch in table.to_batches(max_chunksize=65536) for key in batch["key"].to_pylist())
        hashes = np.frombuffer(b"".join(map(_hash, keys)), HASH)
        order = hashes.argsort()
        self._hashes, self._chances = hashes[order], chances[order].astype(np.float32)
        self._example = table["key"][0].as_py()
        (repeats,) = (self._hashes[1:] == self._hashes[:-1]).nonzero()
        if len(repeats):
            twice = table["key"][int(order[repeats[0]])].as_py()
            raise DataError(f"{config.table} has several rows for {len(repeats)} of its samples, such as {twice}.")

    def __len__(self) -> int:
        """Number of samples that the table lists."""
        return len(self._hashes)

    def keep(self, key: str) -> float:
        """The probability to keep a sample, in [0, 1].

        Raises:
            DataError: If the table does not list it, and ``unlisted`` is "refuse".
        """
        chance = self._chance(key)
        if chance is None and self.config.unlisted == "refuse":
            raise self._unlisted([key])
        return chance or 0.0

    def check(self, keys: Iterable[str]) -> None:
        """See beforehand whether the table lists every sample of a source.

        Raises:
            DataError: Counting and naming those that it does not list, if ``unlisted`` is "refuse".
        """
        if self.config.unlisted == "refuse":
            missing = [key for key in keys if self._chance(key) is None]
            if missing:
                raise self._unlisted(missing)

    def describe(self) -> dict[str, Any]:
        """What decides the selection, in JSON's types; where the table lies does not count."""
        content = hashlib.sha256(self._hashes.tobytes() + self._chances.tobytes())
        return {"samples": len(self), "unlisted": self.config.unlisted, "sha256": content.hexdigest()}

    def _chance(self, key: str) -> float | None:
        sought = np.frombuffer(_hash(key), HASH)[0]
        place = self._hashes.searchsorted(sought)
        return float(self._chances[place]) if place < len(self) and self._hashes[place] == sought else None

    def _unlisted(self, missing: list[str]) -> DataError:
        return DataError(
            f"{self.config.table} does not list {len(missing)} of the samples, such as {', '.join(missing[:3])}; it "
            f"lists {len(self)} others, such as {self._example}. Score this source, or set curation.unlisted=drop."
        )


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()[: HASH.itemsize]


def keep_chances(table: pa.Table, config: CurationConfig) -> NDArray[np.float64]:
    """The probability to keep each row, [n].

    Raises:
        DataError: If a decodable row lacks what a rule needs.
    """
    chances = soft_chances(table) if config.soft_sampling else np.ones(len(table))
    for dropped in dropped_rows(table, config).values():
        chances[dropped] = 0.0
    return chances


def soft_chances(table: pa.Table) -> NDArray[np.float64]:
    """min(reconstruction loss, 1) of each row, [n]; 0 for those that cannot be decoded."""
    return np.nan_to_num(np.minimum(_column(table, "mae_loss", needed_by="soft_sampling"), 1.0))


def dropped_rows(table: pa.Table, config: CurationConfig) -> dict[str, NDArray[np.bool_]]:
    """Which rows each rule drops, [n], by the setting's name and "undecodable"; a row may break several.

    Raises:
        DataError: If a decodable row lacks what a rule needs.
    """
    dropped = {"undecodable": _undecodable(table)}
    if config.histogram_above is not None:
        scores = _column(table, "histogram_score", needed_by="histogram_above")
        dropped["histogram_above"] = scores <= config.histogram_above
    if config.resolution_from is not None:
        sides = [_column(table, side, needed_by="resolution_from") for side in ("height", "width")]
        dropped["resolution_from"] = np.minimum(*sides) < config.resolution_from
    return dropped


def _undecodable(table: pa.Table) -> NDArray[np.bool_]:
    return table["problem"].is_valid().to_numpy()


def _column(table: pa.Table, name: str, *, needed_by: str) -> NDArray[np.float64]:
    """Values [n], NaN where the sample cannot be decoded."""
    values = table[name].cast(pa.float64()).to_numpy()
    absent = int((np.isnan(values) & ~_undecodable(table)).sum())
    if absent:
        hint = " Score with --checkpoint." if name == "mae_loss" else ""
        raise DataError(f"curation.{needed_by} needs {name}, which {absent} of {len(table)} rows lack.{hint}")
    return values
