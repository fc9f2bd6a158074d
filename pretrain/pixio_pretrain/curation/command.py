"""``pixio-pretrain score DATA``: score a source, export the scores, show what rules would make of them."""

import argparse
import logging
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pixio_pretrain.curation.pixio_layout import write_pixio
from pixio_pretrain.curation.scores import ReconstructionLoss
from pixio_pretrain.curation.scoring import score_source
from pixio_pretrain.curation.selection import CurationConfig
from pixio_pretrain.curation.table import read_identity, read_table
from pixio_pretrain.data import open_source
from pixio_pretrain.data.shards import TarShards
from pixio_pretrain.precision import PRECISIONS, check_device
from pixio_pretrain.trained import load_trained
from pixio_robot.errors import SettingError, told_on_one_line

logger = logging.getLogger(__name__)


@told_on_one_line("pixio-pretrain score")
def main(argv: Sequence[str]) -> None:
    """Do what the words say; what the user got wrong is one line, not a traceback."""
    words = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    _score(words, command=shlex.join(["pixio-pretrain", "score", *argv]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pixio-pretrain score",
        description="Score every sample of a source into a table, by which training can filter and soft-sample. "
        "Stop it whenever you like and give the same command again: it goes on.",
    )
    parser.add_argument("data", help="what `data=` of a training run takes")
    parser.add_argument("--table", type=Path, default=Path("scores.parquet"), help="default: %(default)s")
    loss = parser.add_argument_group("reconstruction loss")
    loss.add_argument("--checkpoint", metavar="FOLDER", help="of a run of a masked objective; no loss without it")
    loss.add_argument("--masks", type=int, default=4, help="per image; default: %(default)s")
    loss.add_argument("--seed", type=int, default=0, help="of the masks; default: %(default)s")
    loss.add_argument("--batch-size", type=int, default=64, help="default: %(default)s")
    loss.add_argument("--precision", choices=PRECISIONS, default="fp32", help="default: %(default)s")
    loss.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument(
        "--max-skipped", type=float, default=100, help="undecodable samples to go on after; below 1, their share"
    )
    parser.add_argument("--export-pixio", type=Path, metavar="FOLDER", help="write Pixio's JSON files, one per shard")
    report = parser.add_argument_group("report", "The rules change nothing in the table; training takes its own.")
    report.add_argument("--report", type=Path, metavar="HTML", help="show the scores, and what these rules keep:")
    report.add_argument("--histogram-above", type=float, metavar="BITS", help="Pixio takes 4.5")
    report.add_argument("--resolution-from", type=int, metavar="PIXELS", help="Pixio takes 320")
    report.add_argument("--soft-sampling", action="store_true", help="keep with probability min(loss, 1)")
    return parser


def _score(words: argparse.Namespace, *, command: str) -> None:
    config = CurationConfig(
        table=str(words.table),
        histogram_above=words.histogram_above,
        resolution_from=words.resolution_from,
        soft_sampling=words.soft_sampling,
    )
    if config.rules and not words.report:
        raise SettingError(f"{', '.join(config.rules)} only shapes the report: add --report FILE.html.")
    if words.soft_sampling and not words.checkpoint:
        raise SettingError("--soft-sampling needs reconstruction losses: add --checkpoint RUN_FOLDER.")
    if words.checkpoint:
        check_device(words.device)
    source = open_source(words.data)
    if words.export_pixio and not isinstance(source, TarShards):
        raise SettingError(f"Pixio's layout is one JSON file per tar shard, and {words.data} holds none.")
    score_source(
        source,
        words.table,
        loss=_loss(words),
        batch_size=words.batch_size,
        max_skipped=words.max_skipped,
    )
    table = read_table(words.table)
    logger.info("The scores of %d samples are in %s.", len(table), words.table)
    if words.export_pixio and isinstance(source, TarShards):
        count = write_pixio(table, words.export_pixio, shards=source.urls)
        logger.info("Pixio's layout: %d files in %s.", count, words.export_pixio)
    if words.report:
        from pixio_pretrain.curation.report import write_report  # only the report needs jinja2 and matplotlib

        facts = _facts(read_identity(words.table)) | {"command": command}
        write_report(words.report, table=table, source=source, config=config, facts=facts)
        logger.info("The report is %s.", words.report)


def _loss(words: argparse.Namespace) -> ReconstructionLoss | None:
    if not words.checkpoint:
        return None
    objective = load_trained(words.checkpoint, device=words.device).objective
    return ReconstructionLoss(objective, masks=words.masks, seed=words.seed, precision=words.precision)


def _facts(identity: dict[str, Any]) -> dict[str, str]:
    """What decided the scores, for reading."""
    measured = identity["mae_loss"] or {}
    loss = ", ".join(f"{name} {value}" for name, value in measured.items()) or "not measured"
    source = ", ".join(f"{name} {_short(value)}" for name, value in identity["source"].items())
    return {"source": source, "histogram score": identity["histogram_score"], "reconstruction loss": loss}


def _short(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
