#!/usr/bin/env python
r"""ACT and diffusion on frozen Pixio features beside LeRobot's own with a ResNet-18, after equal minutes of training.

Every policy learns from the same demonstrations of the scripted expert for the same time of one core (which is time on
the clock, where nothing else runs on it). A policy on Pixio features pays for its feature cache out of that time. How
many steps fit is measured first, so that schedules know their end. Then each is rolled out on the same held-out scenes:

    scripts/compare_policies.py --task pick-place-v3 --minutes 5 --seeds 0 1 2 --rollouts 100

A cell (a policy and a training seed) that is done is not done again, nor one that another process is at: start the
command several times to share the cells out. The folder comes to hold every cell's checkpoint and records, laid out as
the benchmark's are, and results.md, whose table is computed from the records of all cells that are there.
"""

import argparse
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path
from statistics import mean
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from benchmark.cells import Cell, cell_folder, finish, is_done, work
from benchmark.results import Panel, make_panel, read_cell
from benchmark.settings import CLEAN
from benchmark.tables import points, to_markdown
from filelock import FileLock
from lerobot.configs import FeatureType
from lerobot.policies.factory import get_policy_class
from lerobot.utils.constants import PRETRAINED_MODEL_DIR
from small_policies import STEPS, resnet_act, resnet_diffusion, small_act, small_diffusion
from stock_loop import StockLoop
from tqdm import tqdm

from lerobot_env_pixio import Task, collect_demonstrations, find_task, make_env, rollout, seeds, write_records
from lerobot_env_pixio.provenance import refuse_other_settings
from lerobot_policy_pixio.acting import Actor
from lerobot_policy_pixio.demonstrations import Demonstrations
from lerobot_policy_pixio.frames import DatasetFrames
from lerobot_policy_pixio.training import Trainer, make_policy, make_processors, train
from pixio_robot import Encoder, build_cache, load_encoder
from pixio_robot.drafts import write_whole
from pixio_robot.errors import PixioRobotError, SettingError, told_on_one_line
from pixio_robot.machine import machine_name

SUITE, CAMERAS, SIZE = "metaworld", ("corner2", "gripperPOV"), 128
ENCODER = "shipped:pixio_vitt16"
GRID = 4  # so few tokens that minutes hold many steps
TRIAL = 10
"""Steps from which the speed is read, after a few to warm up."""
SHARED = ("task", "demonstrations", "minutes", "batch_size", "rollouts")
"""Options in which all cells of a folder agree."""

ARMS: dict[tuple[str, str], tuple[str, Callable[[int], Any]]] = {
    ("act", "pixio"): ("ACT, frozen Pixio features", lambda steps: small_act(ENCODER, grid=GRID, steps=steps)),
    ("diffusion", "pixio"): (
        "Diffusion, frozen Pixio features",
        lambda steps: small_diffusion(ENCODER, grid=GRID, steps=steps),
    ),
    ("act", "resnet"): ("ACT, ResNet-18 from nothing", lambda _: resnet_act()),
    ("diffusion", "resnet"): ("Diffusion, ResNet-18 from nothing", lambda steps: resnet_diffusion(steps=steps)),
}
"""Policy and eyes to a label, and to the settings for a number of steps."""
NAMES = {f"{arm}-{policy}": (policy, arm) for policy, arm in ARMS}
"""What the command line calls them."""


@told_on_one_line("compare_policies")
def main() -> None:
    """Fill in the cells that are asked for, then write the table of all that are there."""
    options = parse_options()
    task = find_task(SUITE, options.task)  # before the folder is claimed for it
    options.task = task.name
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
    wanted = [(seed, *NAMES[name]) for seed in options.seeds for name in options.arms]
    cells = [Cell(task=task, policy=policy, arm=arm, seed=seed) for seed, policy, arm in wanted]
    worked = work(options.folder, cells, partial(fill_cell, demonstrations=demonstrations, options=options))
    for cell in worked.elsewhere:
        print(f"Another process is at {cell.name}.")
    write_results(task, options)
    if worked.failed:
        raise PixioRobotError("; ".join(f"{cell.name} broke: {error}" for cell, error in worked.failed.items()))


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
    parser.add_argument("--arms", nargs="+", choices=NAMES, default=list(NAMES), help="which policies (default: all)")
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


def fill_cell(cell: Cell, home: Path, *, demonstrations: Path, options: argparse.Namespace) -> None:
    """Train and measure one cell."""
    frames = DatasetFrames(demonstrations)
    shutil.rmtree(home / "run", ignore_errors=True)  # one that was killed would have part of its time for nothing
    learn = learn_cached if cell.arm == "pixio" else learn_live
    facts, checkpoint = learn(cell, frames, home / "run", options)
    records = rollout(
        Actor.from_pretrained(checkpoint),
        partial(make_env, SUITE, options.task, cameras=CAMERAS, size=SIZE),
        seeds=seeds.draw(seeds.EVALUATION, options.rollouts),
        workers=options.workers,
        arm=f"{cell.arm}-{cell.policy}",
        policy_seed=cell.seed,
        encoder=load_encoder(ENCODER).fingerprint if cell.arm == "pixio" else None,
        videos=1,
        video_folder=home / "videos",
    )
    write_records(home / f"records_{CLEAN}.jsonl", records)
    finish(home, facts)


def learn_cached(
    cell: Cell, frames: DatasetFrames, run: Path, options: argparse.Namespace
) -> tuple[dict[str, Any], Path]:
    """Build a feature cache, then train from it for what is left of the time; give what it cost, and the checkpoint."""
    encoder, cache = load_encoder(ENCODER), options.folder / "cache"
    _, configure = ARMS[cell.policy, cell.arm]
    config = configure(STEPS)
    cache_seconds = cost_of_cache(cache, encoder, frames, config.grid)
    if cache_seconds >= 60 * options.minutes:
        raise SettingError(f"The feature cache alone took {cache_seconds:.0f} s of CPU time: give more --minutes.")

    trial = make_policy(config, frames, seed=cell.seed, encoder=encoder)
    told = Demonstrations(frames, trial, make_processors(trial, frames)[0], cache)
    trainer = Trainer(trial, told, steps=STEPS, batch_size=options.batch_size, seed=cell.seed)
    numbers = count(1)
    steps = count_steps(lambda: trainer.step(next(numbers)), 60 * options.minutes - cache_seconds)

    began = time.process_time()
    _, log = train(
        configure(steps),
        frames.dataset.root,
        cache,
        run,
        steps=steps,
        batch_size=options.batch_size,
        seed=cell.seed,
        save_every=steps,
        encoder=encoder,
    )
    seconds = time.process_time() - began
    facts = {"steps": steps, "train_seconds": seconds, "cache_seconds": cache_seconds, "loss": log[-1]["loss"]}
    return facts, run / "checkpoints" / "last" / PRETRAINED_MODEL_DIR


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


def learn_live(
    cell: Cell, frames: DatasetFrames, run: Path, options: argparse.Namespace
) -> tuple[dict[str, Any], Path]:
    """Train one of LeRobot's own policies with LeRobot's own loop; give what it cost, and the checkpoint."""

    def start(steps: int) -> StockLoop:
        config = ARMS[cell.policy, cell.arm][1](steps)
        features = frames.policy_features
        acts = {key for key, feature in features.items() if feature.type is FeatureType.ACTION}
        config.output_features = {key: features[key] for key in acts}
        config.input_features = {key: feature for key, feature in features.items() if key not in acts}
        torch.manual_seed(cell.seed)
        policy = get_policy_class(config.type)(config).to(config.device)
        return StockLoop(frames, policy, batch_size=options.batch_size, workers=0, steps=steps)

    steps = count_steps(start(STEPS).step, 60 * options.minutes)
    began = time.process_time()
    loop = start(steps)
    losses = [loop.step() for _ in tqdm(range(steps), desc=f"train {cell.name}", unit="step")]
    seconds = time.process_time() - began
    for part in (loop.policy, loop.preprocessor, loop.postprocessor):
        part.save_pretrained(run)
    return {"steps": steps, "train_seconds": seconds, "cache_seconds": 0.0, "loss": losses[-1]}, run


def count_steps(step: Callable[[], Any], seconds: float) -> int:
    """How many steps fit into a time, by a trial that is thrown away."""
    for _ in range(3):
        step()
    began = time.process_time()
    for _ in range(TRIAL):
        step()
    return max(1, int(seconds * TRIAL / (time.process_time() - began)))


def read_panel(task: Task, policy: str, folder: Path) -> Panel | None:
    """Score a policy's cells that are there; None if there is none."""
    filled = {}
    for arm in ("pixio", "resnet"):
        homes = cell_folder(folder, Cell(task=task, policy=policy, arm=arm, seed=0)).parent.glob(f"{arm}-*")
        found = [int(home.name.rpartition("-")[2]) for home in homes]
        cells = [Cell(task=task, policy=policy, arm=arm, seed=seed) for seed in sorted(found)]
        if done := [read_cell(folder, cell, [CLEAN]) for cell in cells if is_done(folder, cell)]:
            filled[arm] = done
    return make_panel(task, policy, filled, [CLEAN], ["resnet"], planned=0) if filled else None


def write_results(task: Task, options: argparse.Namespace) -> None:
    """Write the table of all cells that are there."""
    found = {policy: read_panel(task, policy, options.folder) for policy in ("act", "diffusion")}
    panels = {policy: panel for policy, panel in found.items() if panel}
    if not panels:
        print("No cell is done yet.")
        return
    rows, lines = [], []
    for (policy, arm), (label, _) in ARMS.items():
        panel = panels.get(policy)
        if panel is None or arm not in panel.scores.get(CLEAN, {}):
            continue
        facts, score = [one.facts for one in panel.cells[arm]], panel.scores[CLEAN][arm]
        steps = ", ".join(str(one["steps"]) for one in facts)
        speed = mean(one["steps"] * options.batch_size / one["train_seconds"] for one in facts)
        rate, ends = f"{score.counts}, {score.rate.value:.0%}", f"{score.rate.low:.0%} to {score.rate.high:.0%}"
        rows.append([label, steps, f"{speed:.0f}", score.per_seed, rate, ends])
        for other, less in score.against.items():
            lines.append(f"- {label} less {ARMS[policy, other][0]}, in points, paired over scenes: {points(less)}.")
    lines += [f"- {policy}: {note}" for policy, panel in panels.items() for note in panel.notes]
    columns = ["policy", "steps", "samples/s", "success by training seed", "success", "95 % interval"]
    parts = [
        f"# {options.task}: policies after {options.minutes:g} minutes of training",
        f"`{shlex.join(['scripts/compare_policies.py', *sys.argv[1:]])}`",
        f"{datetime.now(UTC).date().isoformat()}, {machine_name()}, one thread, "
        f"torch {torch.__version__}. {options.demonstrations} demonstrations, batches of {options.batch_size}, "
        "the last weights are measured. Intervals: for other training seeds and other scenes, where there are several "
        "seeds; for other scenes alone, where there is one.",
        to_markdown(columns, rows),
        "\n".join(lines),
    ]
    text = "\n\n".join(part for part in parts if part) + "\n"
    write_whole(options.folder / "results.md", text)
    print(text)


if __name__ == "__main__":
    main()
