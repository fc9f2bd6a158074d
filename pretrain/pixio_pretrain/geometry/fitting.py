"""The training loop of whatever is small and learns from a frozen encoder: resumable to the last bit."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from pixio_pretrain.geometry.sets import Rows
from pixio_pretrain.optim import OptimizerConfig, learning_rate, make_optimizer
from pixio_pretrain.precision import autocast, resolve
from pixio_pretrain.walk import Walk
from pixio_robot.errors import SettingError
from pixio_robot.runs import alone

INCIDENTAL = ("device", "checkpoint_every", "log_every")
"""Settings that do not decide a result."""


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How long and how fast something is trained.

    Attributes:
        steps: Steps of the optimiser.
        batch_size: Samples of each.
        lr: Learning rate at its peak; a warm-up over the first tenth, then a cosine to 0.
        weight_decay: Of matrices.
        seed: Of weights, order and chance.
        precision: "bf16" computes all but the output layer in bfloat16, "fp32" nothing; "auto" is bf16 where the device
            is fast at it.
        device: Where.
        checkpoint_every: Steps between checkpoints.
        log_every: Steps between lines of ``log.jsonl``.
    """

    steps: int = 2000
    batch_size: int = 16
    lr: float = 5e-4
    weight_decay: float = 0.01
    seed: int = 0
    precision: str = "auto"
    device: str = "cpu"
    checkpoint_every: int = 200
    log_every: int = 20

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.checkpoint_every, self.log_every) < 1 or self.lr <= 0:
            raise SettingError("steps, batch_size, checkpoint_every and log_every must be at least 1, lr above 0.")
        object.__setattr__(self, "precision", resolve(self.precision, self.device))


class Task(Protocol):
    """What is trained.

    Attributes:
        module: Takes the gradients.
        samples: Number of samples.
    """

    module: nn.Module
    samples: int

    def loss(self, rows: Rows, random: torch.Generator) -> dict[str, Tensor]:
        """Give "loss", and its parts by name, for some samples. All chance comes from ``random``."""
        ...


def fit(task: Task, config: FitConfig, folder: Path, *, identity: dict[str, Any]) -> float:
    """Train, or go on where a stopped run's last checkpoint is; SIGTERM makes one at the end of the step.

    Args:
        task: What is trained; its weights have been drawn.
        config: For how long.
        folder: Comes to hold ``log.jsonl`` and ``checkpoints/``.
        identity: Settings that decide the result beside ``config``; another run's folder is refused by them.

    Returns:
        CPU seconds that training took, all threads together.

    Raises:
        CheckpointError: The folder holds another run.
        SettingError: Another process trains there, or the loss is no longer finite.
        SystemExit: With 143, after SIGTERM.
    """
    identity = identity | {f"fit.{name}": value for name, value in asdict(config).items() if name not in INCIDENTAL}
    refusal = SettingError(f"Another process trains in {folder}. Wait for it, or choose another folder.")
    with alone(folder / ".lock", refusal):
        module = task.module.to(config.device)
        if config.device == "cpu":  # bfloat16 convolutions want it: 1.8 times as fast on a CPU with AMX
            module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        settings = OptimizerConfig(base_lr=config.lr, weight_decay=config.weight_decay, betas=(0.9, 0.999))
        optimizer = make_optimizer(module, settings)
        training = Walk(
            folder,
            module,
            optimizer,
            steps=config.steps,
            identity=identity,
            fresh={"cpu_s": 0.0},
            name=folder.name,
        )
        with training:
            clock = _clock(training.known["cpu_s"])
            while training.goes_on:
                row = _step(task, module, optimizer, config, training.step)
                training.count()
                if training.at(config.log_every):
                    training.log({**row, "cpu_s": round(clock(), 1)}, loss=f"{row['loss']:.4f}")
                training.settle(save=training.at(config.checkpoint_every), known={"cpu_s": clock()})
        module.eval()
        return clock()


def batch_of(step: int, *, samples: int, size: int, seed: int) -> Rows:
    """Say which samples a step sees: every sample once in each pass, in an order of its own, fixed by the seed."""
    places = np.arange(step * size, (step + 1) * size)
    rows = np.empty(size, np.int64)
    for number in np.unique(places // samples):
        order = np.random.default_rng([seed, int(number)]).permutation(samples)
        mine = places // samples == number
        rows[mine] = order[places[mine] % samples]
    return rows


def _step(
    task: Task, module: nn.Module, optimizer: torch.optim.Optimizer, config: FitConfig, step: int
) -> dict[str, float]:
    rate = learning_rate(step, steps=config.steps, warmup=config.steps // 10, peak=config.lr)
    for group in optimizer.param_groups:
        group["lr"] = rate
    module.train()
    rows = batch_of(step, samples=task.samples, size=config.batch_size, seed=config.seed)
    random = torch.Generator().manual_seed(int(np.random.SeedSequence([config.seed, step]).generate_state(1)[0]))
    with autocast(config.precision, config.device):
        parts = task.loss(rows, random)
    parts["loss"].backward()
    row = {name: value.item() for name, value in parts.items()} | {"lr": rate}
    norm = torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0).item()
    if not np.isfinite([row["loss"], norm]).all():  # neither may get into the weights
        raise SettingError(
            f"The loss is {row['loss']}, the gradient's norm {norm} at step {step + 1}. Try a smaller lr than "
            f"{config.lr:g}."
        )
    optimizer.step()
    optimizer.zero_grad()
    return row


def _clock(spent: float) -> Callable[[], float]:
    """Count CPU seconds of this process on top of those that were spent before."""
    began = time.process_time() - spent
    return lambda: time.process_time() - began
