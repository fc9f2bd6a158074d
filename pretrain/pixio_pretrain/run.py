"""A run and where it stands: data, model, optimiser, built from the settings or taken up from a checkpoint."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from pixio_pretrain.checkpoint import check_identity, checkpoints, load_checkpoint, read_facts, save_checkpoint
from pixio_pretrain.config import RunConfig
from pixio_pretrain.curation.selection import Curation
from pixio_pretrain.data import Frames, Loader, ResidentFrames, Source, open_source
from pixio_pretrain.data.samples import Batch
from pixio_pretrain.distributed import World, spread
from pixio_pretrain.held_out import take
from pixio_pretrain.objectives import Objective
from pixio_pretrain.optim import make_optimizer
from pixio_pretrain.precision import autocast
from pixio_pretrain.speed import count_flops
from pixio_robot.errors import SettingError

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Run:
    """A run in progress, as one of its processes sees it.

    Attributes:
        config: Its settings.
        identity: What decides its result: the settings that do, what the data says of itself, and hashes of weights
            from elsewhere.
        world: Its processes.
        source: All images.
        train: Those to train on.
        loader: Batches of them, without end.
        held_out: Batches of ``views.held_out_views`` samples of the other images: the same at every look.
        model: The objective.
        shared: What all processes train together: the objective or a wrapper around it.
        optimizer: Of the objective's parameters.
        flops: Floating-point operations of training on one sample.
        step: Steps done.
        elapsed: Seconds of training behind them.
        bad_steps: How many of them were left out.
        bad_in_a_row: How many of the last ones.
    """

    config: RunConfig
    identity: dict[str, Any]
    world: World
    source: Source
    train: Source
    loader: Loader
    held_out: list[Batch]
    model: Objective
    shared: nn.Module
    optimizer: torch.optim.Optimizer
    flops: float
    step: int = 0
    elapsed: float = 0.0
    bad_steps: int = 0
    bad_in_a_row: int = 0

    @property
    def folder(self) -> Path:
        """Where the run lives."""
        return folder_of(self.config)

    def autocast(self) -> torch.autocast:
        """Half precision where the run asks for it."""
        return autocast(self.config.precision, self.world.device)

    def seed(self) -> int:
        """Seed of the chance inside the model, for the next step of this process; so no checkpoint needs to keep it."""
        words = np.random.SeedSequence([self.config.seed, self.step, self.world.rank]).generate_state(1, np.uint64)
        return int(words[0])

    def save(self) -> None:
        """Write a checkpoint; errors as for ``save_checkpoint``."""
        self.world.adopt(self.model.buffers())  # unsynchronised batch norms; one of them is what a checkpoint keeps
        counters = {name: getattr(self, name) for name in COUNTERS}
        save_checkpoint(
            self.folder / "checkpoints",
            self.model,
            self.optimizer,
            step=self.step,
            facts={"identity": self.identity, "licence": self.config.licence, **counters},
            own=self.loader.state_dict(),
            world=self.world,
        )

    def conclude(self) -> Objective | None:
        """Give the model without wrappers and shards, in the first process; None in the others.

        There is no training after that: the optimiser's moments and what the processes shared are let go, so that a GPU
        need not hold them beside the whole model.
        """
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_model_state_dict(self.model, options=options)
        model = self.model.fresh() if self.world.first else None
        del self.model, self.shared, self.optimizer
        if model is None:
            return None
        model.load_state_dict(state)
        return model.to(self.world.device).eval()


COUNTERS = ("step", "elapsed", "bad_steps", "bad_in_a_row")


def folder_of(config: RunConfig) -> Path:
    """Where a run lives."""
    return Path(config.folder).expanduser()


def start(config: RunConfig, world: World) -> Run:
    """Build a run, at its last checkpoint where there is one; errors as for ``train``."""
    part = config.part(world.size)
    if config.optimizer.warmup >= config.steps:
        raise SettingError(
            f"optimizer.warmup={config.optimizer.warmup} is not below steps={config.steps}, so the learning rate would "
            f"never reach its peak: say optimizer.warmup={config.steps // 20}, a twentieth of the steps."
        )
    model: Objective = config.objective.build()
    model.initialize(torch.Generator().manual_seed(config.seed))
    source, curation, identity = open_data(config)
    found = checkpoints(folder_of(config) / "checkpoints")
    facts = read_facts(found[-1]) if found else {}
    begun = {} if found else model.begin()
    identity |= {f"{name}_sha256": value for name, value in (*model.origins.items(), *begun.items())}
    if found:
        hashes = {key: value for key, value in facts["identity"].items() if key.endswith("_sha256")}
        identity = hashes | identity  # weights that it began with are needed no more
        check_identity(facts["identity"], identity, folder_of(config))
    train, held_out = map(model.prepare, source.split(config.views.held_out))
    if curation:
        for images in (train, held_out):
            if isinstance(images, Frames):
                curation.check(map(images.key, range(len(images))))
    reading: dict[str, Any] = {
        "keep": curation.keep if curation else None,
        "buffer": config.loading.shuffle_buffer,
        "max_skipped": config.loading.max_skipped,
    }
    samples = model.samples(crop_scale=1.0)
    measured = list(take(Loader(held_out, samples, batch_size=part, seed=0, **reading), config.views.held_out_views))
    flops = count_flops(model, measured[0])
    shared = spread(model, config.parallel, world)
    scale, resident = config.views.crop_scale, None
    if config.loading.resident:
        resident = ResidentFrames(train, model.batches(crop_scale=scale), seed=config.seed, device=world.device)
    run = Run(
        config=config,
        identity=identity,
        world=world,
        source=source,
        train=train,
        loader=Loader(
            train,
            model.samples(crop_scale=scale),
            batch_size=part,
            seed=config.seed,
            rank=world.rank,
            world=world.size,
            workers=0 if resident else config.loading.workers,
            pin_memory=world.device.type == "cuda" and not resident,
            resident=resident,
            **reading,
        ),
        held_out=measured,
        model=model,
        shared=shared,
        optimizer=make_optimizer(model, config.optimizer),
        flops=flops,
        **{name: facts[name] for name in COUNTERS if found},
    )
    if found:
        run.loader.load_state_dict(load_checkpoint(found[-1], model, run.optimizer, rank=world.rank))
        logger.info("Resuming %s at step %d of %d.", run.folder, run.step, config.steps)
    return run


def open_data(config: RunConfig) -> tuple[Source, Curation | None, dict[str, Any]]:
    """Open a run's images and the table that curates them, and say what decides its result."""
    source = open_source(config.data, cameras=config.views.cameras, stride=config.views.stride)
    curation = config.curation.build()
    identity = config.identity() | {"frames": source.describe()}
    return source, curation, identity | ({"curation": curation.describe()} if curation else {})
