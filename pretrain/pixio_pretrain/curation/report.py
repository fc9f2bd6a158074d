"""What a table of scores says and what rules make of it: one self-contained HTML page."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from pixio_pretrain.curation.scores import MEASURES
from pixio_pretrain.curation.selection import CurationConfig, dropped_rows, keep_chances, soft_chances
from pixio_pretrain.data.source import Source
from pixio_robot.drafts import write_whole
from pixio_robot.errors import DataError, ImageError

PICTURED = 20_000
"""Samples from the start of the table among which pictures are chosen: finding them costs another look at each key."""

TILES = 12
PROBLEMS = 20
SIDE = 144
BLUE, RED = "#1f6feb", "#d1495b"


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """A column of the table, as the page shows it.

    Attributes:
        title: Its name.
        text: What it means.
        values: [n], NaN where the sample cannot be decoded.
        format: How a value is written.
        dropped: Which rows the measure's own rule drops, [n].
    """

    title: str
    text: str
    values: NDArray[np.float64]
    format: str
    dropped: NDArray[np.bool_]


def write_report(
    file: Path, *, table: pa.Table, source: Source, config: CurationConfig, facts: Mapping[str, str]
) -> None:
    """Write the page, whole or not at all.

    Args:
        file: Where it goes.
        table: Scores, in the order in which the source is visited.
        source: Where the pictures come from.
        config: The rules to show.
        facts: How the scores came about: name to value.

    Raises:
        DataError: If the table lacks what a rule needs, or a sample to picture cannot be read any more.
    """
    chances, dropped = keep_chances(table, config), dropped_rows(table, config)
    measures, labels = _measures(table, dropped), _labels(config)
    dropped = {labels[rule]: rows for rule, rows in dropped.items()}
    sheets = _sheets(measures, dropped, chances, pictured=min(len(table), PICTURED))
    keys = {table["key"][row].as_py() for rows in sheets.values() for row in rows}
    thumbnails = _thumbnails(source, keys)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("report.html.jinja").render(
        facts=facts,
        samples=len(table),
        kept=chances.sum(),
        rules=_rules(table, config, dropped),
        problems=_problems(table),
        listed=PROBLEMS,
        measures=[(measure, draw_measure(measure, soft=config.soft_sampling)) for measure in measures],
        sheets={
            title: [_tile(table, row, measures, chances, thumbnails) for row in rows] for title, rows in sheets.items()
        },
        pictured=PICTURED,
        colors={"kept": BLUE, "dropped": RED},
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, page)


def _measures(table: pa.Table, dropped: Mapping[str, NDArray[np.bool_]]) -> list[Measure]:
    """What the table holds; the loss only where there is one."""
    columns = {name: table[name].cast(pa.float64()).to_numpy() for name in MEASURES}
    never = np.zeros(len(table), dtype=bool)
    measures = [
        Measure(
            title="Histogram score",
            text="Entropy of the colours in bits: flat graphics left, photographs right.",
            values=columns["histogram_score"],
            format="{:.2f}",
            dropped=dropped.get("histogram_above", never),
        ),
        Measure(
            title="Smaller side",
            text="Height or width in pixels, whichever is smaller.",
            values=np.minimum(columns["height"], columns["width"]),
            format="{:.0f} px",
            dropped=dropped.get("resolution_from", never),
        ),
        Measure(
            title="Reconstruction loss",
            text="Squared error on hidden patches: what is easily foretold left, what is hard right.",
            values=columns["mae_loss"],
            format="{:.3f}",
            dropped=never,
        ),
    ]
    return [measure for measure in measures if not np.isnan(measure.values).all()]


def _labels(config: CurationConfig) -> dict[str, str]:
    """The rules in words, by the names that ``dropped_rows`` gives them."""
    return {
        "undecodable": "cannot be decoded",
        "histogram_above": f"histogram score ≤ {config.histogram_above}",
        "resolution_from": f"height or width < {config.resolution_from}",
    }


def _sheets(
    measures: Sequence[Measure],
    dropped: Mapping[str, NDArray[np.bool_]],
    chances: NDArray[np.float64],
    *,
    pictured: int,
) -> dict[str, list[int]]:
    """Rows to picture, by the title of their sheet."""
    shown = np.zeros(len(chances), dtype=bool)
    shown[:pictured] = ~np.isnan(measures[0].values[:pictured])
    by_entropy = measures[0].values
    sheets = {f"{measure.title}, low to high": _spread(measure.values, shown) for measure in measures}
    sheets |= {f"Dropped: {rule}": _spread(by_entropy, shown & rows) for rule, rows in dropped.items()}
    sheets["Kept, the most likely last"] = _spread(chances, shown & (chances > 0))
    return {title: rows for title, rows in sheets.items() if rows}


def _spread(values: NDArray[np.float64], among: NDArray[np.bool_]) -> list[int]:
    """Rows at evenly spaced ranks, from the lowest value to the highest."""
    rows = among.nonzero()[0]
    rows = rows[values[rows].argsort(kind="stable")]
    ranks = np.linspace(0, len(rows) - 1, min(TILES, len(rows))).round().astype(int)
    return rows[ranks].tolist()


def _rules(table: pa.Table, config: CurationConfig, dropped: Mapping[str, NDArray[np.bool_]]) -> list[dict[str, Any]]:
    """A line per rule: how many samples it drops, and how many of those no other rule drops."""
    breaks = np.sum(list(dropped.values()), axis=0)
    rules = [
        {"name": rule, "drops": int(rows.sum()), "alone": int((rows & (breaks == 1)).sum())}
        for rule, rows in dropped.items()
    ]
    if config.soft_sampling:
        lost = 1 - soft_chances(table)
        drops, alone = lost[table["problem"].is_null().to_numpy()].sum(), lost[breaks == 0].sum()
        rules.append({"name": "soft sampling, P(keep) = min(loss, 1), on average", "drops": drops, "alone": alone})
    return rules


def _problems(table: pa.Table) -> list[dict[str, str]]:
    """The first samples that cannot be decoded, each with its reason."""
    return table.select(["key", "problem"]).filter(table["problem"].is_valid())[:PROBLEMS].to_pylist()


def _thumbnails(source: Source, keys: set[str]) -> dict[str, str]:
    """Small JPEGs of some samples as base64, by key; goes no further than it must, and decodes nothing else."""
    found: dict[str, str] = {}
    for key, read in source.each():
        if len(found) == len(keys):
            break
        if key in keys:
            try:
                image = read()
            except ImageError as error:
                raise DataError(f"{key} could be decoded when it was scored, and now it cannot: {error}") from error
            image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            image.save(buffer, format="JPEG", quality=85)
            found[key] = base64.b64encode(buffer.getvalue()).decode("ascii")
    if missing := sorted(keys - found.keys()):
        raise DataError(f"{missing[0]} was there when it was scored, and now it is not.")
    return found


def _tile(
    table: pa.Table,
    row: int,
    measures: Sequence[Measure],
    chances: NDArray[np.float64],
    thumbnails: Mapping[str, str],
) -> dict[str, Any]:
    key = table["key"][row].as_py()
    return {
        "key": key,
        "picture": thumbnails[key],
        "values": [measure.format.format(measure.values[row]) for measure in measures],
        "chance": chances[row],
    }


def draw_measure(measure: Measure, *, soft: bool) -> str:
    """Draw how a measure is distributed, dropped values in red; for the loss, also the probability to keep: SVG."""
    from matplotlib.figure import Figure  # slow to import; no pyplot, so no display and no global state

    decodable = ~np.isnan(measure.values)
    values = measure.values[decodable]
    figure = Figure(figsize=(5.4, 2.6), layout="constrained")
    axes = figure.subplots()
    edges = np.histogram_bin_edges(values, bins=60).tolist()
    parts = [values[~measure.dropped[decodable]], values[measure.dropped[decodable]]]
    axes.hist(parts, bins=edges, color=[BLUE, RED], stacked=True)
    if soft and measure.title == "Reconstruction loss":
        chance = axes.twinx()
        points = np.linspace(edges[0], edges[-1], 200)
        chance.plot(points, np.minimum(points, 1), color="0.3", lw=1.2)
        chance.set(ylim=(0, 1.05), ylabel="P(keep)")
        chance.spines["top"].set_visible(False)
    axes.set(xlabel=measure.title.lower(), ylabel="samples")
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True)
    return buffer.getvalue().split("?>", 1)[1].split(">", 1)[1]
