"""The training loop of evaluations: epochs over labelled samples, resumable to the last bit."""

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from pixio_pretrain.data.loader import outlive_termination
from pixio_pretrain.evaluation.chance import seeded
from pixio_pretrain.evaluation.job import Job
from pixio_pretrain.optim import learning_rate
from pixio_pretrain.walk import Walk
from pixio_robot.errors import SettingError, UnknownNameError

POWER = 0.9
"""Of the polynomial decay in Pixio's dense evaluations."""

DECAYS = ("poly", "cosine", "steps")
MILESTONES = (3 / 4, 11 / 12)
"""Shares of all steps after which "steps" divides the rate by 10: 18 000 and 22 000 of the usual 24 000 on VOC."""


@dataclass(kw_only=True)
class Recipe:
    """How long and how fast something is trained.

    Attributes:
        epochs: Passes over the training part.
        batch_size: Samples per step; 0 takes the published number, where a task's depends on its data set.
        lr: Peak learning rate; 0 as for ``batch_size``.
        warmup: Share of all steps over which the rate rises linearly from 0.
        decay: What follows: "poly" ((1 - t) to the power of 0.9), "cosine", or "steps" (a tenth after 3/4 of all
            steps, a hundredth after 11/12).
        min_lr: Where a cosine ends.
        measure_every: Epochs between measurements on the validation part; 0 measures at the end only. The record then
            tells the best epoch of each metric too, which is what Pixio's tables show: chosen on the part that it is
            measured on.
        reference_schedule: Write each rate after the step that it was meant for, as Pixio's evaluations do: the first
            step then runs at the full rate and the others one step late.
    """

    epochs: int
    batch_size: int
    lr: float
    warmup: float = 0.0
    decay: str = "poly"
    min_lr: float = 0.0
    measure_every: int = 0
    reference_schedule: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 1 or min(self.batch_size, self.lr, self.min_lr, self.measure_every) < 0:
            raise SettingError("recipe: epochs must be at least 1, and nothing may be negative.")
        if not 0 <= self.warmup < 1:
            raise SettingError(f"recipe.warmup={self.warmup} is a share of the steps, at least 0 and below 1.")
        if self.decay not in DECAYS:
            raise UnknownNameError("decay of a rate", self.decay, DECAYS)

    def rate(self, step: int, steps: int) -> float:
        """Rate of one step, counted from 0, of so many."""
        if self.reference_schedule:
            return self.lr if step == 0 else self._rate(step - 1, steps)
        return self._rate(step, steps)

    def _rate(self, step: int, steps: int) -> float:
        warmup = int(self.warmup * steps)
        if step < warmup or self.decay == "cosine":
            return learning_rate(step, steps=steps, warmup=warmup, peak=self.lr, min_lr=self.min_lr)
        if self.decay == "steps":
            return self.lr * 0.1 ** sum(step >= share * steps for share in MILESTONES)
        return self.lr * (1 - (step - warmup) / (steps - warmup)) ** POWER


class Trainee(Protocol):
    """What is trained.

    Attributes:
        samples: Number of training samples.
    """

    samples: int

    @property
    def module(self) -> nn.Module:
        """Takes the gradients, and is what a checkpoint keeps."""
        ...

    def sample(self, index: int) -> Any:
        """Make a training sample; all chance comes from PyTorch's generator, which has been seeded for it."""
        ...

    def collate(self, samples: list[Any], /) -> Any:
        """Make a batch."""
        ...

    def optimizer(self) -> torch.optim.Optimizer:
        """Build one. A group's "scale", if it has one, multiplies the rate."""
        ...

    def loss(self, batch: Any) -> Tensor:
        """Give the loss of a batch, a number; chance as in ``sample``."""
        ...


def fit(
    trainee: Trainee,
    recipe: Recipe,
    job: Job,
    *,
    data: Mapping[str, Any],
    measure: Callable[[], Mapping[str, float]] | None = None,
) -> dict[str, Any]:
    """Train, or go on where the last checkpoint is: one per epoch, and one more when SIGTERM asks to stop.

    Args:
        trainee: What is trained; its weights have been drawn.
        recipe: For how long.
        job: Its folder comes to hold ``log.jsonl`` and ``checkpoints/``.
        data: What the parts of the data set say of themselves.
        measure: Gives metrics on the validation part.

    Returns:
        "history": "epoch" and metrics of each measurement on the way; "best": the greatest and the least value of each
        metric, and their epochs.

    Raises:
        CheckpointError: The folder holds another evaluation.
        SettingError: The loss is no longer finite, or there are too few samples.
        SystemExit: With 143, after SIGTERM.
    """
    if not recipe.batch_size or not recipe.lr:
        raise SettingError("task.recipe.batch_size and task.recipe.lr must be above 0.")
    per_epoch = trainee.samples // recipe.batch_size
    if not per_epoch:
        raise SettingError(
            f"task.recipe.batch_size={recipe.batch_size} is more than the {trainee.samples} training samples."
        )
    steps, module = recipe.epochs * per_epoch, trainee.module.to(job.device)
    optimizer, gpus = trainee.optimizer(), [job.device] if job.device.type == "cuda" else []
    training = Walk(
        job.folder,
        module,
        optimizer,
        steps=steps,
        identity=job.identity(data),
        fresh={"history": []},
        name=job.folder.parent.name,
    )
    history = training.known["history"]
    with training, torch.random.fork_rng(gpus), closing(_batches(trainee, recipe, job, training.step)) as batches:
        while training.goes_on:
            rate = recipe.rate(training.step, steps)
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("scale", 1.0)
            seed = (job.config.seed, training.step)
            loss = _step(trainee, module, optimizer, next(batches), seed=seed, job=job)
            training.count()
            if epoch_ends := training.at(per_epoch):
                epoch = training.step // per_epoch
                training.log({"epoch": epoch, "loss": loss, "lr": rate}, epoch=epoch, loss=f"{loss:.4f}")
                if measure and recipe.measure_every and epoch % recipe.measure_every == 0:
                    module.eval()
                    history.append({"epoch": epoch, **measure()})
            training.settle(save=epoch_ends, known={"history": history})
    module.eval()
    return {"history": history, "best": _best(history)}


def _best(history: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for name in history[0].keys() - {"epoch"} if history else ():
        high = max(history, key=lambda row: row[name])
        low = min(history, key=lambda row: row[name])
        found[name] = {
            "greatest": high[name],
            "greatest_epoch": high["epoch"],
            "least": low[name],
            "least_epoch": low["epoch"],
        }
    return found


def _step(
    trainee: Trainee,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Any,
    *,
    seed: tuple[int, int],
    job: Job,
) -> float:
    torch.manual_seed(_seed(*seed))
    module.train()
    with job.autocast():
        loss = trainee.loss(batch)
    loss.backward()
    value = loss.item()
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients).item()
    if not np.isfinite([value, norm]).all():  # neither may get into the weights
        raise SettingError(
            f"The loss is {value}, the gradient's norm {norm} at step {seed[1] + 1}: try a smaller task.recipe.lr, or "
            "precision=fp32."
        )
    optimizer.step()
    optimizer.zero_grad()
    return value


class _Samples(Dataset[Any]):
    """Training samples by (epoch, index): each one's chance is its own, whichever process makes it."""

    def __init__(self, trainee: Trainee, seed: int) -> None:
        self.trainee, self.seed = trainee, seed

    def __getitem__(self, place: tuple[int, int]) -> Any:
        with seeded(_seed(self.seed, *place)):
            return self.trainee.sample(place[1])


def _batches(trainee: Trainee, recipe: Recipe, job: Job, step: int) -> Generator[Any]:
    """Give batches from a step on; an epoch's last samples that fill no batch are left out."""
    seed, per_epoch = job.config.seed, trainee.samples // recipe.batch_size

    def places() -> Iterator[list[tuple[int, int]]]:
        for epoch in range(step // per_epoch, recipe.epochs):
            order = np.random.default_rng([seed, epoch]).permutation(trainee.samples)
            for part in range(step % per_epoch if epoch == step // per_epoch else 0, per_epoch):
                rows = order[part * recipe.batch_size : (part + 1) * recipe.batch_size]
                yield [(epoch, int(row)) for row in rows]

    loader = DataLoader(
        _Samples(trainee, seed),
        batch_sampler=_Places(places),  # pyright: ignore[reportArgumentType]
        num_workers=job.config.workers,
        collate_fn=trainee.collate,
        pin_memory=job.device.type == "cuda",
        worker_init_fn=outlive_termination,
    )
    yield from loader


class _Places:
    """Iterable again and again, as a sampler must be."""

    def __init__(self, make: Callable[[], Iterator[list[tuple[int, int]]]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return self.make()


def _seed(*words: int) -> int:
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])
