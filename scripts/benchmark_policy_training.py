#!/usr/bin/env python
"""ACT's training from a feature cache against LeRobot's loop with the same encoder live, and with its own ResNet-18.

All loops train on the same frames, in turns, so that whatever else the machine does hits all of them; each with the
quickstart's small head, and with LeRobot's default one (width 512, 4 + 4 + 1 blocks, VAE, chunks of 100).
"""

import argparse
import os
import shutil
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from circumstances import circumstances, versions, write_figures
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.factory import get_policy_class
from rich.console import Console
from rich.table import Table
from small_policies import STEPS, resnet_act, small_act
from stock_loop import StockLoop
from turns import ratio, take_turns, timed

from lerobot_policy_pixio import PixioACTConfig
from lerobot_policy_pixio.demonstrations import Demonstrations
from lerobot_policy_pixio.frames import DatasetFrames
from lerobot_policy_pixio.training import Trainer, make_policy, make_processors
from pixio_robot import Encoder, build_cache, create_encoder, load_encoder

CAMERA = "observation.images.top"
CONSOLE = Console()
GRID = 4  # tokens a side: with more of them a head's share of the time grows
CACHED, LIVE, RESNET = "from the cache", "encoder live", "LeRobot's ResNet-18"


@dataclass(frozen=True, kw_only=True)
class Result:
    """One encoder's and one head's figures.

    Attributes:
        encoder: Its name.
        head: "small", or "lerobot" for the default one.
        image_size: Pixels of a side.
        batch_size: Samples per step.
        frames: Of the data set.
        cache_seconds: What building the feature cache took.
        speeds: Samples per second, by loop; one entry per round.
        parts: Milliseconds per sample, by loop and part.
        parity: Relative difference between losses from cached tokens and from live images, for some first steps.
    """

    encoder: str
    head: str
    image_size: int
    batch_size: int
    frames: int
    cache_seconds: float
    speeds: dict[str, list[float]]
    parts: dict[str, dict[str, float]]
    parity: list[float]

    def break_even(self, loop: str) -> float:
        """Passes over the data set after which cache and training together have taken less time than a loop."""
        saved = [self.frames / statistics.median(self.speeds[name]) for name in (loop, CACHED)]
        return self.cache_seconds / (saved[0] - saved[1]) if saved[0] > saved[1] else float("inf")


class Stopwatch:
    """Seconds spent in the parts of a step, by label."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._began: list[float] = []

    def wrap(self, owner: Any, method: str, label: str) -> None:
        """Time every call of a method of one object."""
        call = getattr(owner, method)

        def watched(*args: Any, **kwargs: Any) -> Any:
            self.start()
            result = call(*args, **kwargs)
            self.stop(label)
            return result

        setattr(owner, method, watched)

    def start(self) -> None:
        """Begin to time; calls nest."""
        self._began.append(time.perf_counter())

    def stop(self, label: str) -> None:
        """Book the time since the matching start."""
        self.seconds[label] += time.perf_counter() - self._began.pop()


@dataclass(kw_only=True)
class Turn:
    """A loop that takes turns with others."""

    step: Callable[[], Any]
    steps: int
    stopwatch: Stopwatch


def main() -> None:
    """Measure each encoder with each head, print tables and write the figures."""
    options = parse_options()
    torch.set_num_threads(options.threads)
    results = []
    for name in options.encoders:
        encoder = load_encoder(name) if ":" in name or "/" in name else create_encoder(name, seed=0)
        root = write_dataset(options.folder / f"frames{encoder.spec.image_size}", encoder.spec.image_size)
        for head in options.heads:
            results.append(measure(name, head, encoder, root, options))
            show(results[-1])
    figures = {
        **circumstances(options.device, threads=options.threads),
        "device": options.device,
        "packages": versions("torch", "lerobot", "av", "numpy"),
        "results": [asdict(result) for result in results],
    }
    write_figures(options.folder / "benchmark.json", figures)


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("outputs/benchmark_policy_training"), help="everything")
    parser.add_argument(
        "--encoders", nargs="+", default=["pixio_vitb16", "shipped:pixio_vitt16"], help="a bare name has random weights"
    )
    parser.add_argument("--heads", nargs="+", choices=["small", "lerobot"], default=["small", "lerobot"])
    parser.add_argument("--rounds", type=int, default=3, help="turns of each loop")
    parser.add_argument("--live-steps", type=int, default=1, help="steps of LeRobot's loops per turn")
    parser.add_argument("--cached-steps", type=int, default=10, help="steps from the cache per turn")
    parser.add_argument("--batch-size", type=int, default=32, help="samples per step of all loops")
    parser.add_argument("--workers", type=int, default=0, help="decoding processes of LeRobot's loops")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads of the arithmetic")
    parser.add_argument("--amp", action="store_true", help="mixed precision (use_amp) where we train from the cache")
    parser.add_argument("--device", default="cpu", help="where all loops run")
    return parser.parse_args()


def measure(name: str, head: str, encoder: Encoder, root: Path, options: argparse.Namespace) -> Result:
    """Let the loops take turns with one encoder and one head."""
    frames, encoder = DatasetFrames(root), encoder.to(options.device)
    config, stock = configure(name, head, options.device)
    cache = options.folder / f"{encoder.fingerprint[:12]}.zarr"
    shutil.rmtree(cache, ignore_errors=True)  # its speed is measured too
    began = time.perf_counter()
    build_cache(cache, encoder, frames, grid=config.grid)
    cache_seconds = time.perf_counter() - began
    turns = {
        CACHED: cached_turn(config, frames, encoder, cache, options),
        LIVE: live_turn(make_policy(config, frames, seed=0, encoder=encoder), frames, options),
        RESNET: live_turn(stock_policy(stock, frames), frames, options),
    }
    for turn in turns.values():
        turn.step()  # warms up
        turn.stopwatch.seconds.clear()
    tasks = {loop: partial(take, turn, options.device) for loop, turn in turns.items()}
    seconds = take_turns(tasks, options.rounds, warm_up=False)
    speeds = {loop: [turn.steps * options.batch_size / one for one in seconds[loop]] for loop, turn in turns.items()}
    samples = {loop: options.rounds * turn.steps * options.batch_size for loop, turn in turns.items()}
    return Result(
        encoder=name,
        head=head,
        image_size=encoder.spec.image_size,
        batch_size=options.batch_size,
        frames=len(frames),
        cache_seconds=cache_seconds,
        speeds=speeds,
        parts={loop: parts(turn.stopwatch, samples[loop]) for loop, turn in turns.items()},
        parity=parity(frames, encoder, cache, configure(name, head, options.device)[0], options.batch_size),
    )


def configure(name: str, head: str, device: str) -> tuple[PixioACTConfig, ACTConfig]:
    """Ours and LeRobot's settings with the same head."""
    if head == "small":
        return small_act(name, grid=GRID, device=device), resnet_act(device=device)
    stock = ACTConfig(device=device, pretrained_backbone_weights=None, push_to_hub=False)
    return PixioACTConfig(encoder=name, grid=GRID, device=device), stock


def cached_turn(
    config: PixioACTConfig, frames: DatasetFrames, encoder: Encoder, cache: Path, options: argparse.Namespace
) -> Turn:
    """Our trainer."""
    config.use_amp = options.amp
    policy = make_policy(config, frames, seed=0, encoder=encoder)
    demonstrations = Demonstrations(frames, policy, make_processors(policy, frames)[0], cache)
    trainer = Trainer(policy, demonstrations, steps=STEPS, batch_size=options.batch_size)
    config.use_amp = False
    numbers, stopwatch = count(1), watch(policy, trainer.optimizer)
    stopwatch.wrap(demonstrations, "gather", "data")
    return Turn(step=lambda: trainer.step(next(numbers)), steps=options.cached_steps, stopwatch=stopwatch)


def live_turn(policy: Any, frames: DatasetFrames, options: argparse.Namespace) -> Turn:
    """LeRobot's loop."""
    loop = StockLoop(frames, policy, batch_size=options.batch_size, workers=options.workers, steps=STEPS)
    stopwatch = watch(policy, loop.optimizer)
    stopwatch.wrap(loop, "load", "data")
    stopwatch.wrap(
        *((policy.eyes, "encode") if hasattr(policy, "eyes") else (policy.model.backbone, "forward")), "encoder"
    )
    return Turn(step=loop.step, steps=options.live_steps, stopwatch=stopwatch)


def stock_policy(config: ACTConfig, frames: DatasetFrames) -> Any:
    """LeRobot's own ACT for a data set."""
    like = make_policy(PixioACTConfig(device=str(config.device), blind=True), frames, seed=0).config
    config.input_features, config.output_features = like.input_features, like.output_features
    return get_policy_class(config.type)(config).to(config.device)


def watch(policy: Any, optimizer: Any) -> Stopwatch:
    """Time the parts of a step."""
    stopwatch = Stopwatch()
    stopwatch.wrap(policy, "forward", "forward")
    optimizer.register_step_pre_hook(lambda *_: stopwatch.start())
    optimizer.register_step_post_hook(lambda *_: stopwatch.stop("optimizer"))
    return stopwatch


def take(turn: Turn, device: str) -> float:
    """Give the seconds that the steps of a turn take."""
    spent = timed(lambda: [turn.step() for _ in range(turn.steps)], device=device)
    turn.stopwatch.seconds["total"] += spent
    return spent


def parts(stopwatch: Stopwatch, samples: int) -> dict[str, float]:
    """Milliseconds per sample of each part; the last is what the others leave."""
    spent = {label: 1000 * seconds / samples for label, seconds in stopwatch.seconds.items()}
    total, forward = spent.pop("total"), spent.pop("forward")
    spent["encoder"] = spent.get("encoder", 0.0)
    spent["head forward"] = forward - spent["encoder"]
    return spent | {"backward, clipping, rest": total - sum(spent.values()), "total": total}


def parity(
    frames: DatasetFrames, encoder: Encoder, cache: Path, config: PixioACTConfig, batch_size: int
) -> list[float]:
    """Relative difference of the losses of five training steps, from cached tokens and from live images."""
    images, losses = frames.read(CAMERA, 0, len(frames)), []
    for live in (False, True):
        policy = make_policy(config, frames, seed=0, encoder=encoder)
        demonstrations = Demonstrations(frames, policy, make_processors(policy, frames)[0], cache)
        if live:
            told: Any = demonstrations
            told.gather = lambda rows, gather=demonstrations.gather: gather(rows) | {CAMERA: images[rows]}
        trainer = Trainer(policy, demonstrations, steps=STEPS, batch_size=batch_size)
        losses.append([trainer.step(step)["loss"] for step in range(1, 6)])
    return [abs(a / b - 1) for a, b in zip(*losses, strict=True)]


def write_dataset(root: Path, side: int) -> Path:
    """A data set of moving blobs, six episodes of 30 frames, in LeRobot's default video format."""
    if root.exists():
        return root
    rng = np.random.default_rng(0)
    vector = {"dtype": "float32", "shape": (4,), "names": ["x", "y", "z", "w"]}
    image = {"dtype": "video", "shape": (side, side, 3), "names": ["height", "width", "channels"]}
    features = {"observation.state": vector, "action": vector, CAMERA: image}
    dataset = LeRobotDataset.create("local/blobs", fps=20, features=features, root=root)
    rows, columns = np.mgrid[:side, :side] / side
    for _ in range(6):
        state = rng.uniform(0.2, 0.8, 4).astype(np.float32)
        for _ in range(30):
            action = rng.normal(0, 0.03, 4).astype(np.float32)
            blobs = [np.exp(-((rows - state[0]) ** 2 + (columns - at) ** 2) / 0.02) for at in state[1:]]
            picture = (200 * np.stack(blobs, axis=-1) + rng.uniform(0, 50, (side, side, 3))).astype(np.uint8)
            dataset.add_frame({"observation.state": state, "action": action, CAMERA: picture, "task": "drift"})
            state = state + action
        dataset.save_episode()
    dataset.finalize()
    return root


def show(result: Result) -> None:
    """Print one encoder's and one head's figures."""
    title = f"{result.encoder} at {result.image_size} px, {result.head} head, batches of {result.batch_size}"
    table = Table(title=title, title_justify="left")
    for column in ("ms per sample", *result.parts):
        table.add_column(column, justify="left" if column.startswith("ms") else "right")
    for part in result.parts[LIVE]:
        table.add_row(part, *(f"{found.get(part, 0):.3f}" for found in result.parts.values()))
    speeds = [f"{statistics.median(values):.1f}" for values in result.speeds.values()]
    table.add_row("samples per second, median", *speeds, style="bold")
    CONSOLE.print(table)
    for loop in (LIVE, RESNET):
        CONSOLE.print(
            f"{CACHED} / {loop}, rounds: [bold]{ratio(result.speeds[CACHED], result.speeds[loop])}[/]; "
            f"break-even after {result.break_even(loop):.1f} passes over the data, the cache's building included"
        )
    CONSOLE.print(f"losses from cached tokens and live images differ by {max(result.parity):.1e} at most\n")


if __name__ == "__main__":
    main()
