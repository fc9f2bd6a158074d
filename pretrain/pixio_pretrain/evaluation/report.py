"""A page of what was measured: computed from records and per-image values alone."""

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from pixio_pretrain.evaluation.encoders import RANDOM
from pixio_pretrain.evaluation.job import Values, read_record
from pixio_pretrain.probe.resampling import interval, over_seeds, resampled
from pixio_pretrain.probe.table import markdown
from pixio_robot.drafts import write_whole
from pixio_robot.errors import DataError

PERCENT = ("top1", "top5", "delta", "miou", "iou", "ap")
"""Beginnings of the names of metrics that are shares, shown in per cent."""

COARSE = ("_cm", "_px", "_deg")
"""Ends of the names of metrics of which one decimal is enough."""

OWN = ("encoder", "pyramid", "seed", "data")
"""Settings in which records of one table differ."""

PICTURED = 6


@dataclass(frozen=True, kw_only=True)
class Row:
    """An encoder, as one or more seeds measured it.

    Attributes:
        name: Of the encoder.
        records: By seed.
        folders: Where they lie.
        draws: Resampled values by metric, [1 + DRAWS]: of images, and of seeds if there are several.
    """

    name: str
    records: Sequence[Mapping[str, Any]]
    folders: Sequence[Path]
    draws: Mapping[str, Values]


def write_report(folder: Path) -> Path:
    """Write ``report.html`` about all records below a folder, and its tables, ``results.md``; each whole or not at all.

    Records of one task share a table only if they were made by the same protocol on the same images. Seeds of one
    encoder share a line: of the same weights, or of random ones, which a seed draws. Differences are to the encoder
    that was measured first, paired by image. A metric called "PART/NAME" goes to a table of that part.

    Returns:
        The page.

    Raises:
        DataError: If there are no records, one cannot be read, or two are of one seed of one encoder.
    """
    files = sorted(folder.glob("*/*/record.json"))
    if not files:
        raise DataError(f"{folder.absolute()} holds no records; pixio-eval task=... folder={folder} makes some.")
    found = sorted(((read_record(file), file.parent) for file in files), key=lambda pair: pair[0]["date"])
    tables: dict[str, dict[tuple[str, str], list[tuple[dict[str, Any], Path]]]] = {}
    for record, home in found:
        settings = {key: value for key, value in record["settings"].items() if key not in OWN}
        key = json.dumps([record["task"], settings, record["data"]], sort_keys=True)
        name = record["encoder"]["name"]
        weights = "" if name.startswith(RANDOM) else record["encoder"]["fingerprint"]
        tables.setdefault(key, {}).setdefault((name, weights), []).append((record, home))
    sections = [_section(_rows(lines)) for lines in tables.values()]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pixio_pretrain.evaluation", ""), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = folder / "report.html"
    write_whole(page, environment.get_template("report.html.jinja").render(sections=sections))
    write_whole(folder / "results.md", "\n".join(line for section in sections for line in _markdown(section)))
    return page


def _rows(lines: Mapping[tuple[str, str], Sequence[tuple[dict[str, Any], Path]]]) -> list[Row]:
    """A row for each encoder; those of one name are told apart by their weights."""
    names = Counter(name for name, _ in lines)
    return [
        _row(f"{name} ({weights[:8]})" if names[name] > 1 else name, seeds) for (name, weights), seeds in lines.items()
    ]


def _row(name: str, seeds: Sequence[tuple[dict[str, Any], Path]]) -> Row:
    seeds = sorted(seeds, key=lambda pair: pair[0]["seed"])
    for (one, here), (other, there) in pairwise(seeds):
        if one["seed"] == other["seed"]:
            raise DataError(f"{here} and {there} are both seed {one['seed']} of {name}; remove one of them.")
    by_seed: dict[str, list[Values]] = {}
    for record, home in seeds:
        stratum = json.dumps(record["data"], sort_keys=True)
        with np.load(home / "images.npz") as stored:
            for metric in stored.files:
                by_seed.setdefault(metric, []).append(resampled(stored[metric], stratum))
    draws = {metric: over_seeds(np.stack(found), arm=name) for metric, found in by_seed.items()}
    return Row(name=name, records=[record for record, _ in seeds], folders=[home for _, home in seeds], draws=draws)


def _section(rows: list[Row]) -> dict[str, Any]:
    """What was measured by one protocol: a table for each part, and what belongs to them."""
    record, metrics = rows[0].records[0], list(rows[0].records[0]["metrics"])
    parts = dict.fromkeys(metric.rpartition("/")[0] for metric in metrics)
    protocol = {key.removeprefix("task."): value for key, value in record["settings"].items() if "task." in key}
    data = ", ".join(f"{part['set']} {name}: {part['images']} images" for name, part in record["data"].items())
    return {
        "task": record["task"],
        "data": data,
        "official": record["settings"]["official_counts"],
        "protocol": json.dumps(protocol, sort_keys=True),
        "tables": [_table(part, [name for name in metrics if name.rpartition("/")[0] == part], rows) for part in parts],
        "encoders": [
            {
                "name": row.name,
                "pictures": [_inline(file) for file in sorted((row.folders[0] / "pictures").glob("*.png"))[:PICTURED]],
                "seeds": [
                    f"seed {one['seed']}: {one['date']}, {one['machine']}; "
                    + ", ".join(f"{name} {number}" for name, number in one["versions"].items())
                    for one in row.records
                ],
            }
            for row in rows
        ],
        "chosen": any(one["facts"].get("history") for row in rows for one in row.records),
    }


def _table(part: str, metrics: Sequence[str], rows: Sequence[Row]) -> dict[str, Any]:
    """One table: a line for each encoder, and one for its difference to the first."""
    lines = [
        {
            "name": row.name,
            "seeds": len(row.records),
            "fingerprint": row.records[0]["encoder"]["fingerprint"][:12],
            "cells": [_cell(metric, row) for metric in metrics],
            "differences": [_difference(metric, row, rows[0]) for metric in metrics] if row is not rows[0] else [],
        }
        for row in rows
    ]
    return {"part": part, "metrics": [metric.rpartition("/")[2] for metric in metrics], "lines": lines}


def _markdown(section: Mapping[str, Any]) -> list[str]:
    """A section's tables: one of values, and one of differences to its first line."""
    lines = [f"## {section['task']}", "", f"{section['data']}.", ""]
    for table in section["tables"]:
        lines += [f"### {table['part']}", ""] if table["part"] else []
        for key, head in (("cells", "encoder"), ("differences", f"less {table['lines'][0]['name']}")):
            rows = [[line["name"], *line[key]] for line in table["lines"] if line[key]]
            lines += [markdown([head, *table["metrics"]], rows), ""] if rows else []
    return lines


def _cell(metric: str, row: Row) -> str:
    if metric not in row.draws:
        return _number(metric, float(np.mean([record["metrics"][metric] for record in row.records])))
    return _with_interval(metric, row.draws[metric])


def _difference(metric: str, row: Row, first: Row) -> str:
    if metric not in row.draws or metric not in first.draws:
        return ""
    return _with_interval(metric, row.draws[metric] - first.draws[metric], sign="+")


def _with_interval(metric: str, draws: Values, *, sign: str = "") -> str:
    value, low, high = (_number(metric, number, sign=sign) for number in interval(draws))
    return f"{value} [{low}, {high}]"


def _number(metric: str, value: float, *, sign: str = "") -> str:
    name = metric.rpartition("/")[2]
    if name.startswith(PERCENT):
        return f"{100 * value:{sign}.1f} %"
    return f"{value:{sign}.1f}" if name.endswith(COARSE) else f"{value:{sign}.3f}"


def _inline(file: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()
