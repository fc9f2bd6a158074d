#!/usr/bin/env python
"""Policy training from a feature cache against LeRobot's stock loop with the same frozen encoder live.

Both loops train the quickstart's ACT on the same frames, in turns, so that whatever else the machine does hits both.
"""

import argparse
import json
import os
import platform
import shlex
import shutil
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from accelerate import Accelerator
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.datasets.sampler import EpisodeAwareSampler
from lerobot.scripts.lerobot_train import update_policy
from lerobot.utils.logging_utils import AverageMeter, MetricsTracker
from lerobot.utils.utils import cycle
from rich.console import Console
from rich.table import Table
from small_act import STEPS, small_act
from torch.utils.data import DataLoader

from lerobot_policy_pixio import PixioACTConfig
from lerobot_policy_pixio.demonstrations import Demonstrations
from lerobot_policy_pixio.frames import DECODER, DatasetFrames
from lerobot_policy_pixio.modeling_pixio_act import PixioACTPolicy
from lerobot_policy_pixio.training import Trainer, make_policy, make_processors, sample_rows
from pixio_robot import Encoder, build_cache, create_encoder, load_encoder

CAMERA = "observation.images.top"
CONSOLE = Console()


@dataclass(frozen=True, kw_only=True)
class Result:
    """One encoder's figures. Speeds are samples per second, one entry per round; parts are milliseconds per sample."""

    encoder: str
    image_size: int
    batch_size: int
    live: list[float]
    cached: list[float]
    ratios: list[float]
    live_parts: dict[str, float]
    cached_parts: dict[str, float]
    gather_only: float
    cache_frames_per_s: float
    parity: list[float]


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


class StockLoop:
    """The body of ``lerobot-train``: its data set, sampler, loader, preprocessor and update."""

    def __init__(self, frames: DatasetFrames, policy: PixioACTPolicy, batch_size: int, workers: int) -> None:
        meta = frames.dataset.meta
        ahead = resolve_delta_timestamps(policy.config, meta)
        dataset = LeRobotDataset(meta.repo_id, root=meta.root, delta_timestamps=ahead, video_backend=DECODER)
        sampler = EpisodeAwareSampler(
            frames.episodes["dataset_from_index"], frames.episodes["dataset_to_index"], shuffle=True
        )
        loader = DataLoader(dataset, batch_size=batch_size, sampler=sampler, num_workers=workers, drop_last=True)
        self.batches: Iterator[dict[str, Any]] = cycle(loader)
        self.policy, (self.preprocessor, _) = policy, make_processors(policy, frames)
        self.preset, schedule = policy.config.get_optimizer_preset(), policy.config.get_scheduler_preset()
        self.optimizer: Any = self.preset.build(policy.get_optim_params())
        self.scheduler = schedule and schedule.build(self.optimizer, STEPS)
        self.accelerator = Accelerator(cpu=policy.config.device == "cpu")
        meters = {name: AverageMeter(name) for name in ("loss", "grad_norm", "lr", "update_s")}
        self.tracker = MetricsTracker(batch_size, meta.total_frames, meta.total_episodes, meters)

    def load(self) -> dict[str, Any]:
        """Decode, collate and normalise one batch."""
        return self.preprocessor(next(self.batches))

    def step(self) -> None:
        """Train on one batch."""
        settings = {"grad_clip_norm": self.preset.grad_clip_norm, "lr_scheduler": self.scheduler}
        update_policy(self.tracker, self.policy, self.load(), self.optimizer, accelerator=self.accelerator, **settings)


def main() -> None:
    """Measure each encoder, print a table and write the figures."""
    options = parse_options()
    torch.set_num_threads(options.threads)
    results = []
    for name in options.encoders:
        encoder = load_encoder(name) if ":" in name or "/" in name else create_encoder(name, seed=0)
        root = write_dataset(options.folder / f"frames{encoder.spec.image_size}", encoder.spec.image_size)
        results.append(measure(name, encoder, root, options))
        show(results[-1])
    facts = {
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "machine": f"{os.cpu_count()} cores ({platform.machine()}, {platform.system()}), {options.threads} threads",
        "device": options.device,
        "packages": {package: version(package) for package in ("torch", "lerobot", "av", "numpy")},
    }
    path = options.folder / "benchmark.json"
    path.write_text(json.dumps(facts | {"results": [asdict(result) for result in results]}, indent=2) + "\n")
    CONSOLE.print(f"Figures: {path}")


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("outputs/benchmark_policy_training"), help="everything")
    parser.add_argument(
        "--encoders", nargs="+", default=["pixio_vitb16", "shipped:pixio_vitt16"], help="a bare name has random weights"
    )
    parser.add_argument("--rounds", type=int, default=3, help="turns of each loop")
    parser.add_argument("--live-steps", type=int, default=2, help="steps of the stock loop per turn")
    parser.add_argument("--cached-steps", type=int, default=50, help="steps from the cache per turn")
    parser.add_argument("--batch-size", type=int, default=32, help="samples per step of both loops")
    parser.add_argument("--workers", type=int, default=0, help="decoding processes of the stock loop")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads of the arithmetic")
    parser.add_argument("--device", default="cpu", help="where both loops run")
    return parser.parse_args()


def measure(name: str, encoder: Encoder, root: Path, options: argparse.Namespace) -> Result:
    """Let both loops take turns with one encoder."""
    frames, encoder = DatasetFrames(root), encoder.to(options.device)
    config, cache = small_act(name, device=options.device), options.folder / f"{encoder.fingerprint[:12]}.zarr"
    shutil.rmtree(cache, ignore_errors=True)  # its speed is measured too
    began = time.perf_counter()
    build_cache(cache, encoder, frames, grid=config.grid)
    cache_seconds = time.perf_counter() - began

    live = make_policy(config, frames, seed=0, encoder=encoder)
    cached = make_policy(config, frames, seed=0, encoder=encoder)
    stock = StockLoop(frames, live, options.batch_size, options.workers)
    demonstrations = Demonstrations(frames, cached, make_processors(cached, frames)[0], cache)
    trainer = Trainer(cached, demonstrations, steps=STEPS, batch_size=options.batch_size)
    numbers = count(1)
    turns = [
        (stock.step, options.live_steps, watch(live, stock.optimizer, stock, "load")),
        (lambda: trainer.step(next(numbers)), options.cached_steps, watch(cached, trainer.optimizer, demonstrations)),
    ]
    speeds: list[list[float]] = [[], []]
    for round_number in range(options.rounds + 1):
        for speed, (step, steps, stopwatch) in zip(speeds, turns, strict=True):
            seconds = timed(step, 1 if round_number == 0 else steps)
            if round_number == 0:
                stopwatch.seconds.clear()  # the first turn only warms up
                continue
            stopwatch.seconds["total"] += seconds
            speed.append(steps * options.batch_size / seconds)
    samples = [options.rounds * steps * options.batch_size for _, steps, _ in turns]
    rows = [sample_rows(len(frames), options.batch_size, seed=1, step=step) for step in range(1, 201)]
    gather_seconds = timed(lambda: [demonstrations.gather(batch) for batch in rows], 1)
    return Result(
        encoder=name,
        image_size=encoder.spec.image_size,
        batch_size=options.batch_size,
        live=speeds[0],
        cached=speeds[1],
        ratios=[fast / slow for slow, fast in zip(*speeds, strict=True)],
        live_parts=parts(turns[0][2], samples[0]),
        cached_parts=parts(turns[1][2], samples[1]),
        gather_only=sum(map(len, rows)) / gather_seconds,
        cache_frames_per_s=len(frames) / cache_seconds,
        parity=parity(frames, encoder, cache, config, options.batch_size),
    )


def watch(policy: PixioACTPolicy, optimizer: Any, data: Any, method: str = "gather") -> Stopwatch:
    """Time the parts of a step."""
    stopwatch = Stopwatch()
    stopwatch.wrap(data, method, "data")
    stopwatch.wrap(policy, "forward", "forward")
    stopwatch.wrap(policy, "_encode", "encoder")
    optimizer.register_step_pre_hook(lambda *_: stopwatch.start())
    optimizer.register_step_post_hook(lambda *_: stopwatch.stop("optimizer"))
    return stopwatch


def timed(call: Callable[[], Any], times: int) -> float:
    """Seconds that some calls take, the device's queue included."""
    began = time.perf_counter()
    for _ in range(times):
        call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def parts(stopwatch: Stopwatch, samples: int) -> dict[str, float]:
    """Milliseconds per sample of each part; the last is what the others leave."""
    spent = {label: 1000 * seconds / samples for label, seconds in stopwatch.seconds.items()}
    total, forward = spent.pop("total"), spent.pop("forward")
    spent["head forward"] = forward - spent["encoder"]
    return spent | {"backward, clipping, rest": total - sum(spent.values()), "total": total}


def parity(
    frames: DatasetFrames, encoder: Encoder, cache: Path, config: PixioACTConfig, batch_size: int
) -> list[float]:
    """Relative difference of the losses of 20 training steps, from cached tokens and from live images, step by step."""
    losses = []
    for live in (False, True):
        policy = make_policy(config, frames, seed=0, encoder=encoder)
        demonstrations = Demonstrations(frames, policy, make_processors(policy, frames)[0], cache)
        if live:
            demonstrations.gather = images_instead(demonstrations.gather, frames)
        trainer = Trainer(policy, demonstrations, steps=STEPS, batch_size=batch_size)
        losses.append([trainer.step(step)["loss"] for step in range(1, 21)])
    return [abs(a / b - 1) for a, b in zip(*losses, strict=True)]


def images_instead(gather: Callable[[torch.Tensor], dict[str, Any]], frames: DatasetFrames) -> Any:
    """A ``gather`` that gives decoded images in place of cached tokens."""
    images = frames.read(CAMERA, 0, len(frames))
    return lambda rows: gather(rows) | {CAMERA: images[rows]}


def write_dataset(root: Path, side: int, *, episodes: int = 6, length: int = 30) -> Path:
    """A small data set of moving blobs in LeRobot's default video format."""
    if root.exists():
        return root
    rng = np.random.default_rng(0)
    vector = {"dtype": "float32", "shape": (4,), "names": ["x", "y", "z", "w"]}
    image = {"dtype": "video", "shape": (side, side, 3), "names": ["height", "width", "channels"]}
    features = {"observation.state": vector, "action": vector, CAMERA: image}
    dataset = LeRobotDataset.create("local/blobs", fps=20, features=features, root=root)
    rows, columns = np.mgrid[:side, :side] / side
    for _ in range(episodes):
        state = rng.uniform(0.2, 0.8, 4).astype(np.float32)
        for _ in range(length):
            action = rng.normal(0, 0.03, 4).astype(np.float32)
            blobs = [np.exp(-((rows - state[0]) ** 2 + (columns - at) ** 2) / 0.02) for at in state[1:]]
            picture = (200 * np.stack(blobs, axis=-1) + rng.uniform(0, 50, (side, side, 3))).astype(np.uint8)
            dataset.add_frame({"observation.state": state, "action": action, CAMERA: picture, "task": "drift"})
            state = state + action
        dataset.save_episode()
    dataset.finalize()
    return root


def show(result: Result) -> None:
    """Print one encoder's figures."""
    title = f"{result.encoder}, one camera at {result.image_size} px, batches of {result.batch_size}"
    table = Table(title=title, title_justify="left")
    for column in ("ms per sample", "live, LeRobot's loop", "from the cache"):
        table.add_column(column, justify="left" if column.startswith("ms") else "right")
    for part in result.live_parts:
        table.add_row(part, f"{result.live_parts[part]:.3f}", f"{result.cached_parts[part]:.3f}")
    speeds = [f"{statistics.median(values):.1f}" for values in (result.live, result.cached)]
    table.add_row("samples per second, median", *speeds, style="bold")
    CONSOLE.print(table)
    low, high = min(result.ratios), max(result.ratios)
    CONSOLE.print(
        f"cached / live: [bold]{statistics.median(result.ratios):.1f}x[/] (rounds from {low:.1f}x to {high:.1f}x); "
        f"data path alone {result.gather_only:.0f} samples/s; caching {result.cache_frames_per_s:.1f} frames/s; "
        f"loss of 20 training steps: differs by {statistics.mean(result.parity):.1e} on average, "
        f"{max(result.parity[:10]):.1e} at most in the first ten, {max(result.parity):.1e} at most\n"
    )


if __name__ == "__main__":
    main()
