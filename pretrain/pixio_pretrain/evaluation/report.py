"""A page of what was measured: computed from records and per-image values alone."""

import base64
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from pixio_pretrain.evaluation.intervals import resampled
from pixio_pretrain.evaluation.job import Values, read_record
from pixio_pretrain.probe.resampling import interval
from pixio_robot.errors import DataError

PERCENT = ("top1", "top5", "delta", "miou", "ap")
"""Beginnings of the names of metrics that are shares, shown in per cent."""

PICTURED = 3


@dataclass(frozen=True, kw_only=True)
class Row:
    """An evaluation.

    Attributes:
        name: Of the encoder and its seed.
        record: The record.
        folder: Where it lies.
        draws: Resampled values by metric, [1 + DRAWS].
    """

    name: str
    record: Mapping[str, Any]
    folder: Path
    draws: Mapping[str, Values]


def write_report(folder: Path) -> Path:
    """Write ``report.html`` about all records below a folder, whole or not at all.

    Records of one task share a table only if they were made by the same protocol on the same images; differences are
    to the table's first encoder, paired by image.

    Returns:
        The page.

    Raises:
        DataError: If there are no records, or one cannot be read.
    """
    files = sorted(folder.glob("*/*/record.json"))
    if not files:
        raise DataError(f"{folder.absolute()} holds no records; pixio-eval task=... folder={folder} makes some.")
    tables: dict[str, list[Row]] = {}
    for file in files:
        row = _read(file)
        settings = {
            key: value for key, value in row.record["settings"].items() if key not in ("encoder", "seed", "data")
        }
        key = json.dumps([row.record["task"], settings, row.record["data"]], sort_keys=True)
        tables.setdefault(key, []).append(row)
    sections = [_section(rows) for rows in tables.values()]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pixio_pretrain.evaluation", ""), autoescape=True, undefined=jinja2.StrictUndefined
    )
    draft, page = folder / "report.html.writing", folder / "report.html"
    draft.write_text(environment.get_template("report.html.jinja").render(sections=sections))
    os.replace(draft, page)
    return page


def _read(file: Path) -> Row:
    record = read_record(file)
    with np.load(file.parent / "images.npz") as stored:
        stratum = json.dumps(record["data"], sort_keys=True)
        draws = {name: resampled(stored[name], stratum) for name in stored.files}
    name = f"{record['encoder']['name']} (seed {record['seed']})"
    return Row(name=name, record=record, folder=file.parent, draws=draws)


def _section(rows: list[Row]) -> dict[str, Any]:
    """One table, and what belongs to it."""
    first, metrics = rows[0], list(rows[0].record["metrics"])
    lines = [
        {
            "name": row.name,
            "fingerprint": row.record["encoder"]["fingerprint"][:12],
            "cells": [_cell(metric, row) for metric in metrics],
            "differences": [_difference(metric, row, first) for metric in metrics] if row is not first else [],
            "pictures": [_inline(file) for file in sorted((row.folder / "pictures").glob("*.png"))[:PICTURED]],
            "when": f"{row.record['date']}, {row.record['machine']}",
            "versions": ", ".join(f"{name} {number}" for name, number in row.record["versions"].items()),
        }
        for row in rows
    ]
    protocol = {key.removeprefix("task."): value for key, value in first.record["settings"].items() if "task." in key}
    data = ", ".join(f"{part['set']} {name}: {part['images']} images" for name, part in first.record["data"].items())
    return {
        "task": first.record["task"],
        "data": data,
        "official": first.record["settings"]["official_counts"],
        "protocol": json.dumps(protocol, sort_keys=True),
        "metrics": metrics,
        "lines": lines,
        "chosen": any("history" in row.record["facts"] and row.record["facts"]["history"] for row in rows),
    }


def _cell(metric: str, row: Row) -> str:
    if metric not in row.draws:
        return _number(metric, row.record["metrics"][metric])
    return _with_interval(metric, row.draws[metric])


def _difference(metric: str, row: Row, first: Row) -> str:
    if metric not in row.draws or metric not in first.draws:
        return ""
    return _with_interval(metric, row.draws[metric] - first.draws[metric], sign="+")


def _with_interval(metric: str, draws: Values, *, sign: str = "") -> str:
    value, low, high = (_number(metric, number, sign=sign) for number in interval(draws))
    return f"{value} [{low}, {high}]"


def _number(metric: str, value: float, *, sign: str = "") -> str:
    return f"{100 * value:{sign}.1f} %" if metric.startswith(PERCENT) else f"{value:{sign}.3f}"


def _inline(file: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()
