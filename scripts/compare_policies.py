#!/usr/bin/env python
r"""ACT and diffusion on frozen Pixio features beside LeRobot's own with a ResNet-18, after equal minutes of training.

Every policy learns from the same demonstrations of the scripted expert for the same time of one core (which is time on
the clock, where nothing else runs on it). A policy on Pixio features pays for its feature cache out of that time. How
many steps fit is measured first, so that schedules know their end. Then each is rolled out on the same held-out scenes:

    scripts/compare_policies.py --task pick-place-v3 --minutes 5 --seeds 0 1 2 --rollouts 100

A cell (a policy and a training seed) that is done is not done again, nor one that another process is at: start the
command several times to share the cells out. The folder comes to hold every cell's checkpoint and records, and
results.md, whose table is computed from the records of all cells that are there.
"""

import argparse
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from benchmark.estimates import difference_of, rate_of
from benchmark.tables import points
from filelock import FileLock, Timeout
from lerobot.configs import FeatureType
from lerobot.policies.factory import get_policy_class
from small_policies import STEPS, resnet_act, resnet_diffusion, small_act, small_diffusion
from stock_loop import StockLoop
from tqdm import tqdm

from lerobot_env_pixio import (
    collect_demonstrations,
    find_task,
    make_env,
    read_records,
    rollout,
    seeds,
    write_records,
)
from lerobot_env_pixio.provenance import refuse_other_settings
from lerobot_policy_pixio.acting import Actor
from lerobot_policy_pixio.demonstrations import Demonstrations
from lerobot_policy_pixio.frames import DatasetFrames
from lerobot_policy_pixio.training import Trainer, make_policy, make_processors, train
from pixio_robot import Encoder, build_cache, load_encoder
from pixio_robot.drafts import write_whole
from pixio_robot.errors import told_on_one_line
from pixio_robot.machine import machine_name

SUITE, CAMERAS, SIZE = "metaworld", ("corner2", "gripperPOV"), 128
ENCODER = "shipped:pixio_vitt16"
TRIAL = 10
"""Steps from which the speed is read, after a few to warm up."""
SHARED = ("task", "demonstrations", "minutes", "batch_size", "rollouts")
"""Options in which all cells of a folder agree."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One kind of policy: its settings for a number of steps, and whether it trains from a feature cache."""

    label: str
    configure: Callable[[int], Any]  # a PreTrainedConfig
    cached: bool


ARMS = {
    "pixio-act": Arm(
        label="ACT, frozen Pixio features", configure=lambda steps: small_act(ENCODER, steps=steps), cached=True
    ),
    "pixio-diffusion": Arm(
        label="Diffusion, frozen Pixio features",
        configure=lambda steps: small_diffusion(ENCODER, steps=steps),
        cached=True,
    ),
    "resnet-act": Arm(label="ACT, ResNet-18 from nothing", configure=lambda _: resnet_act(), cached=False),
    "resnet-diffusion": Arm(
        label="Diffusion, ResNet-18 from nothing", configure=lambda steps: resnet_diffusion(steps=steps), cached=False
    ),
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What one training cost.

    Attributes:
        arm: A key of ``ARMS``.
        seed: Of weights and order.
        steps: Optimizer steps that fitted into the budget.
        train_seconds: What they took of one core.
        cache_seconds: What the feature cache took of it before.
        loss: Of the last step.
    """

    arm: str
    seed: int
    steps: int
    train_seconds: float
    cache_seconds: float
    loss: float


@told_on_one_line("compare_policies")
def main() -> None:
    """Fill in the cells that are asked for, then write the table of all that are there."""
    options = parse_options()
    options.task = find_task(SUITE, options.task).name  # before the folder is claimed for it
    torch.set_num_threads(1)
    claim(options)
    demonstrations = collect_demonstrations(
        options.folder / "demonstrations",
        SUITE,
        options.task,
        episodes=options.demonstrations,
        cameras=CAMERAS,
        size=SIZE,
        workers=options.workers,
    )
    for seed in options.seeds:
        for name in options.arms:
            fill_cell(name, seed, demonstrations, options)
    write_results(options)


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="pick-place-v3", help="of Meta-World (default: pick-place-v3)")
    parser.add_argument("--demonstrations", type=int, default=100, help="episodes of the expert (default: 100)")
    parser.add_argument(
        "--minutes", type=float, default=5.0, help="of one core for training, cache included (default: 5)"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="frames per step (default: 32)")
    parser.add_argument("--rollouts", type=int, default=100, help="held-out episodes per cell (default: 100)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="training seeds (default: 0 1 2)")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="which policies (default: all)")
    parser.add_argument("--workers", type=int, default=1, help="processes for simulation (default: 1)")
    parser.add_argument("--folder", type=Path, default=Path("outputs/compare_policies"), help="where everything goes")
    return parser.parse_args()


def claim(options: argparse.Namespace) -> None:
    """Write down what the folder's cells have in common, or check that it is the same.

    Raises:
        DataError: It is not; says what differs.
    """
    shared = {key: getattr(options, key) for key in SHARED}
    path = options.folder / "settings.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(".settings.lock")):
        if not path.exists():
            write_whole(path, json.dumps(shared, indent=2) + "\n")
        refuse_other_settings(options.folder, found=json.loads(path.read_text()), wanted=shared)


def fill_cell(name: str, seed: int, demonstrations: Path, options: argparse.Namespace) -> None:
    """Train and measure one cell, unless its records are there or another process is at it."""
    home = options.folder / f"{name}-{seed}"
    try:
        with FileLock(home.with_name(f".{home.name}.lock"), timeout=0):
            if not (home / "records.jsonl").exists():
                shutil.rmtree(home, ignore_errors=True)  # one that was killed would have part of its time for nothing
                train_and_measure(name, seed, home, demonstrations, options)
    except Timeout:
        print(f"Another process is at {home.name}.")


def train_and_measure(name: str, seed: int, home: Path, demonstrations: Path, options: argparse.Namespace) -> None:
    """Fill in one cell."""
    frames = DatasetFrames(demonstrations)
    learn = learn_cached if ARMS[name].cached else learn_live
    cell = learn(name, seed, frames, home, options)
    records = rollout(
        Actor.from_pretrained(home / "policy"),
        partial(make_env, SUITE, options.task, cameras=CAMERAS, size=SIZE),
        seeds=seeds.draw(seeds.EVALUATION, options.rollouts),
        workers=options.workers,
        arm=name,
        policy_seed=seed,
        encoder=load_encoder(ENCODER).fingerprint if ARMS[name].cached else None,
        videos=1,
        video_folder=home / "videos",
    )
    (home / "cell.json").write_text(json.dumps(asdict(cell), indent=2) + "\n")
    write_records(home / "records.jsonl", records)  # last: with it, the cell is done


def learn_cached(name: str, seed: int, frames: DatasetFrames, home: Path, options: argparse.Namespace) -> Cell:
    """Build a feature cache, then train from it for what is left of the time."""
    encoder, cache = load_encoder(ENCODER), options.folder / "cache"
    config = ARMS[name].configure(STEPS)
    cache_seconds = cost_of_cache(cache, encoder, frames, config.grid)

    trial = make_policy(config, frames, seed=seed, encoder=encoder)
    told = Demonstrations(frames, trial, make_processors(trial, frames)[0], cache)
    trainer = Trainer(trial, told, steps=STEPS, batch_size=options.batch_size, seed=seed)
    numbers = count(1)
    steps = count_steps(lambda: trainer.step(next(numbers)), 60 * options.minutes - cache_seconds)

    began = time.process_time()
    _, log = train(
        ARMS[name].configure(steps),
        frames.dataset.root,
        cache,
        home / "run",
        steps=steps,
        batch_size=options.batch_size,
        seed=seed,
        save_every=steps,
        encoder=encoder,
    )
    seconds = time.process_time() - began
    keep(home / "run" / "checkpoints" / "last" / "pretrained_model", home / "policy")
    costs = {"train_seconds": seconds, "cache_seconds": cache_seconds}
    return Cell(arm=name, seed=seed, steps=steps, loss=log[-1]["loss"], **costs)


def cost_of_cache(cache: Path, encoder: Encoder, frames: DatasetFrames, grid: int) -> float:
    """Build the cache that all cells share, and say what it took of one core: the same for each of them."""
    path = cache.with_suffix(".json")
    with FileLock(cache.with_name(".cost.lock")):
        if not path.exists():
            shutil.rmtree(cache, ignore_errors=True)  # of a half-built one the cost is not known
            began = time.process_time()
            build_cache(cache, encoder, frames, grid=grid)
            write_whole(path, json.dumps({"seconds": time.process_time() - began}) + "\n")
    return json.loads(path.read_text())["seconds"]


def learn_live(name: str, seed: int, frames: DatasetFrames, home: Path, options: argparse.Namespace) -> Cell:
    """Train one of LeRobot's own policies with LeRobot's own loop."""

    def start(steps: int) -> StockLoop:
        config = ARMS[name].configure(steps)
        features = frames.policy_features
        acts = {key for key, feature in features.items() if feature.type is FeatureType.ACTION}
        config.output_features = {key: features[key] for key in acts}
        config.input_features = {key: feature for key, feature in features.items() if key not in acts}
        torch.manual_seed(seed)
        policy = get_policy_class(config.type)(config).to(config.device)
        return StockLoop(frames, policy, batch_size=options.batch_size, workers=0, steps=steps)

    steps = count_steps(start(STEPS).step, 60 * options.minutes)
    began = time.process_time()
    loop = start(steps)
    losses = [loop.step() for _ in tqdm(range(steps), desc=f"train {name} {seed}", unit="step")]
    seconds = time.process_time() - began
    for part in (loop.policy, loop.preprocessor, loop.postprocessor):
        part.save_pretrained(home / "policy")
    return Cell(arm=name, seed=seed, steps=steps, train_seconds=seconds, cache_seconds=0.0, loss=losses[-1])


def count_steps(step: Callable[[], Any], seconds: float) -> int:
    """How many steps fit into a time, by a trial that is thrown away."""
    for _ in range(3):
        step()
    began = time.process_time()
    for _ in range(TRIAL):
        step()
    return max(1, int(seconds * TRIAL / (time.process_time() - began)))


def keep(checkpoint: Path, place: Path) -> None:
    """Put a name on a checkpoint that any arm's checkpoint bears."""
    place.unlink(missing_ok=True)
    place.symlink_to(checkpoint.resolve(), target_is_directory=True)


def write_results(options: argparse.Namespace) -> None:
    """Write the table of all cells that are there."""
    cells: dict[str, list[Cell]] = {}
    outcomes: dict[str, list[list[bool | None]]] = {}  # seeds x scenes
    for name in ARMS:
        homes = sorted(path.parent for path in options.folder.glob(f"{name}-*/records.jsonl"))
        if homes:
            cells[name] = [Cell(**json.loads((home / "cell.json").read_text())) for home in homes]
            outcomes[name] = [[one.success for one in read_records(home / "records.jsonl")] for home in homes]
    if not cells:
        print("No cell is done yet.")
        return
    # A scene that broke off is nobody's failure: it is left out everywhere, so that all arms keep the same ones.
    played = np.concatenate([np.array(found, object) for found in outcomes.values()])  # cells x scenes
    whole = np.all(played != None, axis=0)  # noqa: E711 (element by element)
    successes = {name: np.array(found, object)[:, whole].astype(bool) for name, found in outcomes.items()}
    rows = [
        "| policy | steps | samples/s | success by training seed | success | 95 % interval |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, found in successes.items():
        steps = ", ".join(str(cell.steps) for cell in cells[name])
        speed = np.mean([cell.steps * options.batch_size / cell.train_seconds for cell in cells[name]])
        each = ", ".join(f"{int(seed.sum())}/{len(seed)}" for seed in found)
        rate = rate_of(found)
        rows.append(
            f"| {ARMS[name].label} | {steps} | {speed:.0f} | {each} | {int(found.sum())}/{found.size}, "
            f"{rate.value:.0%} | {rate.low:.0%} to {rate.high:.0%} |"
        )
    lines = []
    for ours, theirs in (("pixio-act", "resnet-act"), ("pixio-diffusion", "resnet-diffusion")):
        if ours in successes and theirs in successes:
            less = points(difference_of(successes[ours], successes[theirs]))
            lines.append(f"- {ARMS[ours].label} less {ARMS[theirs].label}, in points, paired over scenes: {less}.")
    parts = [
        f"# {options.task}: policies after {options.minutes:g} minutes of training",
        f"`{shlex.join(['scripts/compare_policies.py', *sys.argv[1:]])}`",
        f"{datetime.now(UTC).date().isoformat()}, {machine_name()}, one thread, "
        f"torch {torch.__version__}. {options.demonstrations} demonstrations, batches of {options.batch_size}, "
        "the last weights are measured. Intervals: for other training seeds and other scenes, where there are several "
        "seeds; for other scenes alone, where there is one.",
        "\n".join(rows),
        "\n".join(lines),
    ]
    text = "\n\n".join(part for part in parts if part) + "\n"
    write_whole(options.folder / "results.md", text)
    print(text)


if __name__ == "__main__":
    main()
