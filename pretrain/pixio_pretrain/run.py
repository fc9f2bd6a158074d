"""A run and where it stands: frames, model, optimiser, built from the settings or taken up from a checkpoint."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pixio_pretrain.checkpoint import load_checkpoint
from pixio_pretrain.config import RunConfig
from pixio_pretrain.data import Frames, open_frames, split_episodes
from pixio_pretrain.data.views import Views
from pixio_pretrain.objectives import Objective, ObjectiveConfig
from pixio_pretrain.optim import make_optimizer

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Run:
    """A run in progress.

    Attributes:
        config: Its settings.
        frames: All frames.
        train_views: Crops to train on.
        held_out_views: Crops to measure on; always the same ones.
        model: The objective.
        optimizer: Its optimiser.
        step: Optimiser steps done.
        elapsed: Seconds of training behind them.
    """

    config: RunConfig
    frames: Frames
    train_views: Views
    held_out_views: Views
    model: Objective
    optimizer: torch.optim.AdamW
    step: int = 0
    elapsed: float = 0.0

    @property
    def folder(self) -> Path:
        """Where the run lives."""
        return Path(self.config.folder).expanduser()

    @property
    def log(self) -> Path:
        """One JSON object per line: step, loss, lr, images_per_s, elapsed_s and, now and then, held_out_loss."""
        return self.folder / "log.jsonl"

    def rows(self) -> list[dict[str, float]]:
        """The log up to the run's step; what a stopped run wrote after its last checkpoint does not count."""
        lines = self.log.read_text().splitlines(keepends=True) if self.log.exists() else []
        rows = [json.loads(line) for line in lines if line.endswith("\n")]  # a kill may cut the last line
        return [row for row in rows if row["step"] <= self.step]

    def autocast(self) -> torch.autocast:
        """Half precision where the run asks for it."""
        return torch.autocast(self.config.device, torch.bfloat16, enabled=self.config.precision == "bf16")


def identity(config: RunConfig, frames: Frames) -> dict[str, Any]:
    """What decides a run's result: its settings and its frames."""
    return config.identity() | {"frames": frames.describe()}


def start(config: RunConfig) -> Run:
    """Build a run, at its last checkpoint where there is one; errors as for ``train``."""
    objective: ObjectiveConfig = config.objective
    model = objective.build()
    model.initialize(torch.Generator().manual_seed(config.seed))
    model.to(config.device)
    checkpoint = Path(config.folder).expanduser() / "checkpoint.pt"
    frames = open_frames(config.data)
    state = load_checkpoint(checkpoint, identity=identity(config, frames))
    train_indices, held_out_indices = split_episodes(frames.episodes, config.views.held_out)
    run = Run(
        config=config,
        frames=frames,
        train_views=Views(
            frames=frames,
            indices=train_indices,
            batch_size=config.batch_size,
            samples=model.samples(crop_scale=config.views.crop_scale),
            seed=config.seed,
        ),
        held_out_views=Views(
            frames=frames,
            indices=held_out_indices,
            batch_size=config.batch_size,
            samples=model.samples(crop_scale=1.0),
            seed=0,
        ),
        model=model,
        optimizer=make_optimizer(model, config.optimizer),
    )
    if state:
        model.load_state_dict(state["model"])
        run.optimizer.load_state_dict(state["optimizer"])
        run.step, run.elapsed = state["step"], state["elapsed"]
        logger.info("Resuming %s at step %d of %d.", run.folder, run.step, config.steps)
    run.folder.mkdir(parents=True, exist_ok=True)
    return run
