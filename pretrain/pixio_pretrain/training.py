"""The training loop: one process, one device, resumable at every checkpoint to the last bit."""

import json
import math
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from pixio_pretrain.card import write_encoders
from pixio_pretrain.checkpoint import save_checkpoint
from pixio_pretrain.config import RunConfig
from pixio_pretrain.data.samples import Batch
from pixio_pretrain.evaluate import held_out_loss
from pixio_pretrain.optim import learning_rate
from pixio_pretrain.run import Run, identity, start
from pixio_robot.errors import SettingError


def train(config: RunConfig, *, command: str = "pixio_pretrain.train(config)") -> Path:
    """Train, or take up a stopped run, and write its encoder.

    Args:
        config: The settings. ``config.folder`` comes to hold ``log.jsonl``, ``checkpoint.pt`` and ``encoder/``.
        command: What started it, for the model card.

    Returns:
        The encoder's folder, for ``load_encoder``.

    Raises:
        DataError: If the frames cannot be read.
        CheckpointError: If the folder holds a run with other settings.
        SettingError: If settings do not fit together, or the loss is no longer finite.
        UnknownNameError: If objective or encoder are unknown.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    run = start(config)
    if not (run.folder / "encoder" / "config.json").is_file() or run.step < config.steps:
        run.log.write_text("".join(json.dumps(row) + "\n" for row in run.rows()))
        _fit(run)
        write_encoders(run.folder, run, command=command)
    return run.folder / "encoder"


def _fit(run: Run) -> None:
    """Train from the run's step to its end."""
    config = run.config
    loader = DataLoader(
        run.train_views,
        batch_size=None,
        sampler=range(run.step, config.steps),
        num_workers=config.workers,
        pin_memory=config.device.startswith("cuda"),
        generator=torch.Generator(),  # the workers' seeds must not be drawn from the global generator
    )
    began = time.monotonic() - run.elapsed
    cuda = [torch.device(config.device)] if config.device.startswith("cuda") else []
    progress = tqdm(total=config.steps * config.batch_size, initial=run.step * config.batch_size, unit="image")
    with torch.random.fork_rng(cuda), progress, run.log.open("a", buffering=1) as log:
        for batch in loader:
            row = {"step": run.step + 1, **_train_step(run, batch)}
            run.step += 1
            run.elapsed = time.monotonic() - began
            progress.update(config.batch_size)
            last = run.step == config.steps
            if run.step % config.evaluate_every == 0 or last:
                row["held_out_loss"] = held_out_loss(
                    run.model, run.held_out_views, config.views.held_out_views, run.autocast()
                )
            if run.step % config.log_every == 0 or "held_out_loss" in row:
                rate = float(progress.format_dict["rate"] or 0.0)
                log.write(json.dumps(row | {"images_per_s": round(rate, 1), "elapsed_s": round(run.elapsed, 1)}) + "\n")
                progress.set_postfix(loss=f"{row['loss']:.4f}", refresh=False)
            if run.step % config.checkpoint_every == 0 or last:
                _save(run)


def _train_step(run: Run, batch: Batch) -> dict[str, float]:
    """One optimiser step: loss and learning rate."""
    config = run.config
    rate = learning_rate(run.step, steps=config.steps, warmup=config.optimizer.warmup, peak=config.lr)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    torch.manual_seed(config.seed + run.step)  # for drop path; inside fork_rng, so the caller's generator is untouched
    run.model.train()
    run.model.before_step(run.step, config.steps)
    with run.autocast():
        loss = run.model(**batch).loss
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in run.model.parameters() if p.grad is not None])
    if not math.isfinite(loss.item() + norm.item()):
        raise SettingError(
            f"Loss {loss.item():.4g}, gradient norm {norm.item():.4g} at step {run.step}: the run has diverged. "
            f"Try a smaller optimizer.base_lr than {config.optimizer.base_lr}, a longer warmup, or precision=fp32."
        )
    run.optimizer.step()
    run.optimizer.zero_grad()
    return {"loss": loss.item(), "lr": rate}


def _save(run: Run) -> None:
    state = {
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "step": run.step,
        "elapsed": run.elapsed,
    }
    save_checkpoint(run.folder / "checkpoint.pt", state, identity=identity(run.config, run.frames))
