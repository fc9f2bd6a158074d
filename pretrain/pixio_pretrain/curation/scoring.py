"""Scoring a source: every sample once, resumable at any moment, the same table whether it was stopped or not."""

import logging
import time
from collections.abc import Container, Iterator, Sequence
from itertools import batched, islice
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from pixio_pretrain.curation.scores import HISTOGRAM, ReconstructionLoss, Scores, histogram_score
from pixio_pretrain.curation.table import TableWriter, check_identity
from pixio_pretrain.data.skips import Skipped
from pixio_pretrain.data.source import Frames, Source
from pixio_robot.errors import DataError, SettingError
from pixio_robot.runs import alone

logger = logging.getLogger(__name__)

SAVE_EVERY = 60.0
"""Seconds of work that a kill may cost."""


def score_source(
    source: Source,
    file: Path,
    *,
    loss: ReconstructionLoss | None = None,
    batch_size: int = 64,
    max_skipped: float = 100,
    save_every: float = SAVE_EVERY,
) -> None:
    """Make the table of a source's scores, or go on where a stopped process left it; a finished one is left alone.

    Args:
        source: What to score.
        file: Where the table goes.
        loss: Measures reconstruction; without it ``mae_loss`` stays empty.
        batch_size: Images per call of ``loss``.
        max_skipped: How many samples may be undecodable, or below 1, which share of them. They become rows, too.
        save_every: Seconds between saves.

    Raises:
        DataError: If the file or what is left of a stopped process holds other scores, another process is scoring into
            it, or the source cannot be read.
        CheckpointError: If losses are not finite.
        SettingError: If a setting is out of range.
    """
    if batch_size < 1:
        raise SettingError(f"batch_size must be at least 1, not {batch_size}.")
    refusal = DataError(f"Another process scores into {file}. Wait for it, or choose another file.")
    with alone(file.with_name(f".{file.name}.lock"), refusal):
        _score_source(source, file, loss, batch_size=batch_size, max_skipped=max_skipped, save_every=save_every)


def _score_source(
    source: Source,
    file: Path,
    loss: ReconstructionLoss | None,
    *,
    batch_size: int,
    max_skipped: float,
    save_every: float,
) -> None:
    identity = _identity(source, loss, batch_size)
    if file.exists():
        check_identity(file, identity, what=file)
    writer = TableWriter(file, identity)
    if file.exists():
        writer.discard()
        logger.info("%s is finished; nothing is scored again.", file)
        return
    if writer.done:
        logger.info("Going on after %d samples that are scored.", len(writer.done))
    skipped = Skipped(max_skipped)
    skipped.update({key: problem for key, problem in writer.done.items() if problem})
    skipped.check(len(writer.done) - len(skipped))
    total = len(source) if isinstance(source, Frames) else None
    with tqdm(total=total, initial=len(writer.done), unit="image") as progress:
        waiting: list[Scores] = []
        saved = time.monotonic()
        for rows in _score(source, writer.done, skipped, loss, batch_size):
            waiting += rows
            progress.update(len(rows))
            if time.monotonic() - saved >= save_every:  # whole batches only: a resumed process cuts the same ones
                writer.save(waiting)
                waiting, saved = [], time.monotonic()
        writer.save(waiting)
    writer.finish()
    if skipped:
        logger.warning("%d samples cannot be decoded and will not be trained on. %s", len(skipped), skipped)


def _identity(source: Source, loss: ReconstructionLoss | None, batch_size: int) -> dict[str, Any]:
    """What decides the scores; the batch size does so in the last bits of a loss."""
    measured = {"batch_size": batch_size, **loss.describe()} if loss else None
    return {"source": source.describe(), "histogram_score": HISTOGRAM, "mae_loss": measured}


def _score(
    source: Source, done: Container[str], skipped: Skipped, loss: ReconstructionLoss | None, batch_size: int
) -> Iterator[list[Scores]]:
    """Score what is not done, batch by batch; samples that could not be read come with the batch that follows them."""
    listed = len(skipped)
    for batch in batched(source.visit(skipped, without=done), batch_size):
        problems = _problems(skipped, listed)
        listed += len(problems)
        yield problems + _measure(batch, loss)
    yield _problems(skipped, listed)


def _problems(skipped: Skipped, listed: int) -> list[Scores]:
    return [Scores(key=key, problem=reason) for key, reason in islice(skipped.items(), listed, None)]


def _measure(batch: Sequence[tuple[str, Image.Image]], loss: ReconstructionLoss | None) -> list[Scores]:
    losses = loss([image for _, image in batch]) if loss else [None] * len(batch)
    return [
        Scores(key=key, histogram_score=histogram_score(image), height=image.height, width=image.width, mae_loss=value)
        for (key, image), value in zip(batch, losses, strict=True)
    ]
