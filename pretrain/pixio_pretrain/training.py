"""The training loop: any number of processes, resumable at every checkpoint to the last bit."""

import json
import logging
import math
import signal
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from itertools import islice
from pathlib import Path

import torch
from tqdm import tqdm

from pixio_pretrain.card import PICTURES, write_encoders
from pixio_pretrain.checkpoint import check_identity
from pixio_pretrain.config import RunConfig
from pixio_pretrain.data import Loaded
from pixio_pretrain.distributed import gradient_norm, join, synchronising
from pixio_pretrain.heap import keep_freed_memory
from pixio_pretrain.held_out import mean_loss
from pixio_pretrain.logs import Logs, Row, RunLog
from pixio_pretrain.run import Run, folder_of, open_data, start
from pixio_pretrain.speed import Meter, matmul_ceiling
from pixio_robot.drafts import write_whole
from pixio_robot.errors import SettingError
from pixio_robot.runs import alone, termination

logger = logging.getLogger(__name__)


def train(config: RunConfig, *, command: str = "pixio_pretrain.train(config)") -> Path:
    """Train, or take up a stopped run, and write its encoders.

    Processes that ``torchrun`` started train together; the first one writes, and the others return before it is done.
    On SIGTERM the run saves itself at the end of the step and exits with code 143, as a terminated process does.

    Args:
        config: The settings. ``config.folder`` comes to hold ``log.jsonl``, ``pictures/``, ``checkpoints/``, a folder
            per encoder, and at the very end ``result.json``.
        command: What started it, for the model card.

    Returns:
        The folder of the encoder, or of the first of several, for ``load_encoder``.

    Raises:
        DataError: If the images cannot be read.
        CheckpointError: If the folder holds a run with other settings, or a checkpoint cannot be read or written.
        SettingError: If settings do not fit together, or the loss stays non-finite.
        UnknownNameError: If objective, encoder or tracker are unknown.
    """
    folder = folder_of(config)
    names = _finished(config)
    if not names:
        if config.threads:
            torch.set_num_threads(config.threads)
        if config.device == "cpu":
            keep_freed_memory()
        world = join(config.device)
        refusal = SettingError(f"Another process trains in {folder}. Wait for it, or choose another folder.")
        with alone(folder / ".lock", refusal) if world.first else nullcontext():
            run = start(config, world)
            _fit(run)
            model = run.conclude()
            encoders = model.encoders if model else {}
            names = world.tell(list(encoders))
            if model:
                loss = write_encoders(run, model, encoders, command=command)
                result = {"encoders": names, "held_out_loss": loss, "identity": run.identity}
                write_whole(folder / "result.json", json.dumps(result, indent=2) + "\n")
    return folder / names[0]


def _finished(config: RunConfig) -> list[str]:
    """Names of the encoders of a finished run, after a check that it is this one; none if it is not finished."""
    file = folder_of(config) / "result.json"
    if not file.exists():
        return []
    result = json.loads(file.read_text())
    _, _, identity = open_data(config)
    origins = {key: value for key, value in result["identity"].items() if key.endswith("_sha256")}
    check_identity(result["identity"], identity | origins, folder_of(config))  # what is trained needs no teacher
    return result["encoders"]


def _fit(run: Run) -> None:
    """Train from the run's step to its end."""
    config, world = run.config, run.world
    began = time.monotonic() - run.elapsed
    gpus = [world.device] if world.device.type == "cuda" else []
    meter = _meter(run)
    with (
        _logs(run) as logs,
        _progress(run) as progress,
        termination() as asked,
        torch.random.fork_rng(gpus),
        closing(iter(run.loader)) as batches,  # an exception that somebody keeps would keep the workers, too
    ):
        while run.step < config.steps:
            with meter.timing():
                row = _train_step(run, batches)
            run.elapsed = time.monotonic() - began
            last, stopping = run.step == config.steps, world.any(asked.is_set())
            if last or run.step % config.evaluate_every == 0:
                row["held_out_loss"] = _look(run, logs)
            if run.step % config.log.every == 0 or "held_out_loss" in row:
                row |= meter.read() | {"elapsed_s": round(run.elapsed, 1), "unreadable": len(run.loader.skipped)}
                logs.write(row)
                progress.set_postfix(loss=f"{row['loss']:.4f}", mfu=f"{row['utilisation']:.0%}", refresh=False)
            progress.update(config.batch_size)
            if last and not math.isfinite(row["held_out_loss"]):
                raise _diverged(run, f"The held-out loss is {row['held_out_loss']:.4g} after the last step")
            good = run.bad_in_a_row == 0  # weights that make every loss infinite must not replace better ones
            if last or (good and (stopping or run.step % config.checkpoint_every == 0)):
                run.save()
            if stopping and not last:
                logger.warning("Terminated at step %d of %d; the same command goes on.", run.step, config.steps)
                raise SystemExit(128 + signal.SIGTERM)


def _train_step(run: Run, batches: Iterator[Loaded]) -> Row:
    """One step; without a move of the weights if loss or gradient are not finite."""
    config, model, parts = run.config, run.model, run.config.parallel.accumulate
    rate = config.learning_rate(run.step)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    torch.manual_seed(run.seed())  # for drop path; inside fork_rng, so the caller's generator is untouched
    model.train()
    model.before_step(run.step, config.steps)
    buffers = [buffer.clone() for buffer in model.buffers()]
    total = torch.zeros((), device=run.world.device)
    for number, loaded in enumerate(islice(batches, parts), start=1):
        with synchronising(run.shared, number == parts):
            with run.autocast():
                loss = run.shared(**loaded.batch).loss / parts
            loss.backward()
        total += loss.detach()
    loss, norm = run.world.average(total, gradient_norm(model))
    if math.isfinite(loss + norm):
        run.optimizer.step()
        run.bad_in_a_row = 0
    else:
        _leave_out(run, buffers, loss, norm)
    run.optimizer.zero_grad()
    run.step += 1
    return {"step": run.step, "loss": loss, "lr": rate, "gradient_norm": norm, "bad_steps": run.bad_steps}


def _leave_out(run: Run, buffers: list[torch.Tensor], loss: float, norm: float) -> None:
    """Undo what a bad step did to the statistics of batch norms, and give up after too many bad ones in a row."""
    for buffer, before in zip(run.model.buffers(), buffers, strict=True):
        buffer.copy_(before)
    run.bad_steps += 1
    run.bad_in_a_row += 1
    said = f"Loss {loss:.4g}, gradient norm {norm:.4g} at step {run.step + 1}"
    if run.bad_in_a_row < run.config.max_bad_steps:
        logger.warning("%s: left out.", said)
        return
    raise _diverged(run, f"{said}, the last of {run.bad_in_a_row} bad steps in a row")


def _diverged(run: Run, said: str) -> SettingError:
    return SettingError(
        f"{said}: the run has diverged, and stays at its last good checkpoint. Try, in another folder, a smaller "
        f"optimizer.base_lr than {run.config.optimizer.base_lr}, a longer warmup, or precision=fp32."
    )


@torch.no_grad()
def _look(run: Run, logs: RunLog) -> float:
    """Measure the held-out loss, and keep a picture."""
    with torch.compiler.set_stance("force_eager"):  # compiling evaluation, too, would cost more than it saves
        loss = mean_loss(run.model, run.held_out, run.autocast())
        run.model.eval()
        picture = run.model.picture({key: value[:PICTURES] for key, value in run.held_out[0].items()})
    if picture:
        logs.show(picture, run.step)
    return loss


def _logs(run: Run) -> RunLog:
    if not run.world.first:
        return RunLog()
    return Logs(run.folder, run.config.log, settings=run.identity, step=run.step)


def _progress(run: Run) -> tqdm:
    done, total = run.step * run.config.batch_size, run.config.steps * run.config.batch_size
    return tqdm(total=total, initial=done, unit="image", disable=not run.world.first)


def _meter(run: Run) -> Meter:
    dtype = torch.bfloat16 if run.config.precision == "bf16" else torch.float32
    ceiling = matmul_ceiling(run.world.device, dtype) * run.world.size
    return Meter(batch_size=run.config.batch_size, flops=run.flops, ceiling=ceiling)
