#!/usr/bin/env python
"""Frames per second out of a LeRobotDataset: pre-training's reader against LeRobot's own random access.

Both read the same videos through the same PyTorch DataLoader with the same batches and workers, in turns, so that
whatever else the machine does hits both. Every frame comes out decoded: RGB, uint8. LeRobot seeks for each one; we read
runs and shuffle them in a buffer, whose filling is not timed but reported.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import av.logging
import datasets
import numpy as np
from circumstances import circumstances, versions, write_figures
from lerobot.configs.video import RGBEncoderConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader
from turns import ratio, take_turns, timed

from pixio_pretrain.data import Loader, open_source
from pixio_pretrain.heap import keep_freed_memory
from pixio_robot.machine import device_name

CAMERA = "observation.images.top"
CONSOLE = Console()


@dataclass(frozen=True, kw_only=True)
class Result:
    """One data set's figures: frames per second, one entry per round, and seconds to fill the buffer."""

    codec: str
    side: int
    lerobot: list[float]
    ours: list[float]
    fill_seconds: float


def main() -> None:
    """Measure every codec at every size, print tables and write ``benchmark.json``."""
    options = parse_options()
    keep_freed_memory()  # as a training run does; it serves both readers
    av.logging.set_level(av.logging.ERROR)
    datasets.disable_progress_bars()
    results = [measure(codec, side, options) for codec in options.codecs for side in options.sides]
    figures = {
        **circumstances(),
        "machine": {"processor": device_name(), "cores": sorted(os.sched_getaffinity(0)), "load": os.getloadavg()},
        "versions": versions("av", "lerobot", "torch"),
        "results": [asdict(result) for result in results],
    }
    show(results, options)
    write_figures(options.folder / "benchmark.json", figures)


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("outputs/benchmark_video_reading"), help="for the figures")
    parser.add_argument("--codecs", nargs="+", default=["libsvtav1", "h264"], help="LeRobot's default comes first")
    parser.add_argument("--sides", nargs="+", type=int, default=[96, 224, 480], help="pixels")
    parser.add_argument("--episodes", type=int, default=8, help="of the data set")
    parser.add_argument("--length", type=int, default=150, help="frames of an episode")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each reader")
    parser.add_argument("--batch-size", type=int, default=32, help="frames of a batch")
    parser.add_argument("--lerobot-batches", type=int, default=8, help="timed per round")
    parser.add_argument("--our-batches", type=int, default=40, help="timed per round")
    parser.add_argument("--buffer", type=int, default=512, help="frames of our shuffle buffer")
    parser.add_argument("--workers", type=int, default=0, help="processes of either DataLoader")
    return parser.parse_args()


def measure(codec: str, side: int, options: argparse.Namespace) -> Result:
    """Write a data set and read it both ways in turns."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "drift"
        write_dataset(root, codec, side, episodes=options.episodes, length=options.length)
        theirs = read_lerobot(root, options)
        ours = read_runs(root, options)
        next(theirs)
        filled = timed(partial(next, ours))
        counts = {"lerobot": (theirs, options.lerobot_batches), "ours": (ours, options.our_batches)}
        readers = {name: partial(frames_per_second, frames, count) for name, (frames, count) in counts.items()}
        speeds = take_turns(readers, options.rounds, warm_up=False)
    return Result(codec=codec, side=side, fill_seconds=filled, **speeds)


def frames_per_second(frames: Iterator[int], count: int) -> float:
    """Read some batches."""
    began = time.perf_counter()
    return sum(islice(frames, count)) / (time.perf_counter() - began)


def read_lerobot(root: Path, options: argparse.Namespace) -> Iterator[int]:
    """Batches of LeRobot's shuffled DataLoader without end: the number of frames in each."""
    dataset = LeRobotDataset("local/drift", root=root, return_uint8=True)
    loader: Any = DataLoader(dataset, batch_size=options.batch_size, shuffle=True, num_workers=options.workers)
    while True:
        for batch in loader:
            yield len(batch[CAMERA])


def read_runs(root: Path, options: argparse.Namespace) -> Iterator[int]:
    """Batches of our loader: the number of frames in each."""
    loader = Loader(
        open_source(root),
        lambda image, _: {"images": np.asarray(image)},
        batch_size=options.batch_size,
        seed=0,
        workers=options.workers,
        buffer=options.buffer,
    )
    for loaded in loader:
        yield len(loaded.batch["images"])


def write_dataset(root: Path, codec: str, side: int, *, episodes: int, length: int) -> None:
    """Write a data set of drifting colours with a noisy square, encoded by LeRobot's defaults."""
    random = np.random.default_rng(0)
    vector = {"dtype": "float32", "shape": (4,), "names": ["x", "y", "z", "w"]}
    image = {"dtype": "video", "shape": (side, side, 3), "names": ["height", "width", "channels"]}
    features = {"observation.state": vector, "action": vector, CAMERA: image}
    encoder = RGBEncoderConfig(vcodec=codec)
    dataset = LeRobotDataset.create("local/drift", fps=30, features=features, root=root, rgb_encoder=encoder)
    square = side // 4
    for _ in range(episodes):
        colors = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        ground = np.asarray(colors.resize((side, side), Image.Resampling.BICUBIC))
        texture = random.integers(0, 256, (square, square, 3), dtype=np.uint8)
        for frame in range(length):
            picture = np.roll(ground, frame // 2, axis=1)
            left = (2 * frame) % (side - square)
            picture[square : 2 * square, left : left + square] = texture
            still = np.zeros(4, dtype=np.float32)
            dataset.add_frame({"observation.state": still, "action": still, CAMERA: picture, "task": "drift"})
        dataset.save_episode()
    dataset.finalize()


def show(results: list[Result], options: argparse.Namespace) -> None:
    """Print the figures: medians, and the range of the ratio."""
    title = (
        f"frames per second, batches of {options.batch_size}, {options.workers} workers, medians of {options.rounds}"
    )
    table = Table(title=title, title_justify="left")
    for column in ("codec", "pixels", "LeRobotDataset", "runs", "ratio (range of the rounds)", "filling the buffer"):
        table.add_column(column, justify="left" if column == "codec" else "right")
    for result in results:
        table.add_row(
            result.codec,
            f"{result.side} x {result.side}",
            f"{statistics.median(result.lerobot):.0f}",
            f"{statistics.median(result.ours):.0f}",
            ratio(result.ours, result.lerobot),
            f"{result.fill_seconds:.1f} s",
        )
    CONSOLE.print(table)


if __name__ == "__main__":
    main()
