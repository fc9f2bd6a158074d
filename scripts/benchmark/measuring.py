"""Filling in one cell: train its policy, then roll out the last weights under every condition."""

import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from lerobot.utils.constants import ACTION, PRETRAINED_MODEL_DIR

from benchmark.acting import open_actor
from benchmark.arms import Sight, open_sight
from benchmark.cells import PATCHES, PRETRAINING, Cell, finish
from benchmark.pictures import copy_picture, draw_patches
from benchmark.recipes import configure, soften
from benchmark.settings import SCENES, Benchmark
from benchmark.tasks import environment, open_demonstrations, shared_folder
from lerobot_env_pixio import rollout, seeds, write_records
from lerobot_policy_pixio.acting import Actor
from lerobot_policy_pixio.augmentation import ImageAugmentation
from lerobot_policy_pixio.cache_folders import cache_path
from lerobot_policy_pixio.cached_tokens import cache_settings
from lerobot_policy_pixio.decoded import decode_frames
from lerobot_policy_pixio.frames import DatasetFrames
from lerobot_policy_pixio.options import PixioOptions
from lerobot_policy_pixio.training import train
from pixio_robot import build_cache
from pixio_robot.errors import PixioRobotError
from pixio_robot.images import resize
from pixio_robot.machine import machine_name


@dataclass(kw_only=True)
class Cost:
    """CPU seconds by what they went to, of this process and of those it waited for."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Charge what happens inside to a part."""
        before = _cpu_seconds()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + _cpu_seconds() - before


def fill_cell(cell: Cell, home: Path, *, config: Benchmark) -> None:
    """Train and measure a cell; what a killed process has done of it is not done again.

    A training goes on from its last checkpoint, and a condition whose records are there is not played again.

    Raises:
        PixioRobotError: Whatever training and rolling out raise.
    """
    taken_up = any(home.glob("run*")) or any(home.glob("records_*"))
    began, cost = time.monotonic(), Cost()
    torch.set_num_threads(config.threads)
    with cost.of("shared"):  # demonstrations, caches and fresh encoders, which the first cell that needs them makes
        frames = open_demonstrations(config, cell.task)
        soften(frames.dataset.meta.stats)  # pyright: ignore[reportArgumentType]
        sight = _open_sight(cell, frames, config)
        policy = _configure(cell, frames, sight, config)
    log = _train(cell, home / "run", frames, sight, policy, config, cost)
    actor = open_actor(cell.policy, home / "run" / "checkpoints" / "last" / PRETRAINED_MODEL_DIR, device=config.device)
    if sight.encoder is not None:
        eyes: Any = actor.policy.eyes
        draw_patches(home / PATCHES, eyes, frames)
        copy_picture(home / PRETRAINING, sight.source)
    for condition, shift in config.conditions.items():
        with cost.of(f"rollouts, {condition}"):
            _measure(actor, cell, home, condition, shift, sight, config)
    facts = {
        "cell": cell.name,
        "encoder": sight.encoder.fingerprint if sight.encoder else None,
        "source": _source(sight, config),
        "weights": sight.encoder.provenance if sight.encoder else None,
        "training": asdict(config.training[cell.policy]),
        "demonstrations": {"frames": len(frames), "episodes": len(frames.episodes), "sha256": frames.fingerprint},
        "losses": [[int(row["step"]), row["loss"]] for row in log],
        "trained_parameters": sum(one.numel() for one in actor.policy.parameters() if one.requires_grad),
        "cpu_seconds": {part: round(spent, 1) for part, spent in cost.seconds.items()},
        "wall_seconds": round(time.monotonic() - began, 1),
        "taken_up": taken_up,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine_name(config.device),
    }
    finish(home, facts)


def _open_sight(cell: Cell, frames: DatasetFrames, config: Benchmark) -> Sight:
    def pictures(side: int, count: int, *, spread: bool) -> list[torch.Tensor]:
        count = min(count, len(frames))
        start = (len(frames) - count) // 2
        middle = partial(frames.read, start=start, stop=start + count)
        read = partial(frames.spread, count=count) if spread else middle
        return [resize(read(camera), (side, side)) for camera in frames.cameras]

    return open_sight(config, cell.arm, cell.seed, pictures=pictures, shared=shared_folder(config, cell.task))


def _configure(cell: Cell, frames: DatasetFrames, sight: Sight, config: Benchmark) -> PixioOptions:
    features = {name: feature for name, feature in frames.policy_features.items() if name != ACTION}
    steps = config.training[cell.policy].steps
    policy = configure(cell.policy, sight, features, suite=cell.task.suite, steps=steps, device=config.device)
    return policy if sight.trained else replace(policy, encoder_dtype=config.encoder_dtype)


def _train(
    cell: Cell,
    folder: Path,
    frames: DatasetFrames,
    sight: Sight,
    policy: PixioOptions,
    config: Benchmark,
    cost: Cost,
) -> Sequence[dict[str, float]]:
    """Train, or finish a training; give its log."""
    settings: dict[str, Any] = asdict(config.training[cell.policy])
    settings |= {"seed": cell.seed, "save_every": config.save_every, "encoder": sight.encoder}
    seen: dict[str, Any] = {"variants": config.variants, "augment": ImageAugmentation() if config.variants else None}
    if sight.trained:
        with cost.of("shared"):
            pixels = decode_frames(frames, shared_folder(config, cell.task) / "frames", **seen)
        with cost.of("training"):
            return train(policy, frames, None, folder, pixels=pixels, **settings)[1]
    cache = None
    if sight.encoder is not None:
        facts = cache_settings(policy, sight.encoder, frames) | seen
        cache = cache_path(shared_folder(config, cell.task) / "demonstrations", sight.encoder, frames, **facts)
        cache.parent.mkdir(parents=True, exist_ok=True)
        with cost.of("shared"), FileLock(cache.with_name(f".{cache.name}.queue")):
            build_cache(cache, sight.encoder, frames, **facts)
    with cost.of("training"):
        return train(policy, frames, cache, folder, **settings)[1]


def _measure(
    actor: Actor, cell: Cell, home: Path, condition: str, shift: str | None, sight: Sight, config: Benchmark
) -> None:
    """Play one condition's scenes, unless their records are there.

    An episode that broke off is played once more before its record is final: a worker that was killed for memory, or
    hung, would cost every arm its scene.
    """
    path = home / f"records_{condition}.jsonl"
    if path.exists():
        return
    play = partial(
        rollout,
        actor,
        environment(config, cell.task, shift=shift, state=sight.state, policy=cell.policy),
        workers=config.workers,
        slots=config.slots,
        arm=cell.arm,
        policy_seed=cell.seed,
        encoder=sight.encoder.fingerprint if sight.encoder else None,
        video_folder=home / "videos" / condition,
    )
    torch.manual_seed(cell.seed)  # a diffusion policy draws its noise here
    records = play(seeds=seeds.draw(SCENES[config.scenes], config.episodes), videos=config.videos)
    if broken := [record.env_seed for record in records if record.error]:
        with suppress(PixioRobotError):  # then what broke off stays so, and what was played is kept
            again = {record.env_seed: record for record in play(seeds=broken)}
            records = [again.get(record.env_seed, record) for record in records]
    write_records(path, records)


def _source(sight: Sight, config: Benchmark) -> str:
    """What an encoder was read from; one that was made for this benchmark by its place within the folder."""
    place, home = Path(sight.source), Path(config.folder).absolute()
    return str(place.relative_to(home)) if place.is_relative_to(home) else sight.source


def _cpu_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
