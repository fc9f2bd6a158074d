import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from pixio_pretrain.config import LogConfig, OptimizerConfig, RunConfig, ViewsConfig
from pixio_pretrain.objectives.masked import PixioConfig

TASKS, EPISODES, FRAMES, SIDE = 3, 12, 4, 40


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished frame store: a square on a ramp; each task has its colour, each episode its place."""
    random = np.random.default_rng(0)
    ramp = np.broadcast_to(np.linspace(40, 200, SIDE, dtype=np.uint8)[:, None], (SIDE, SIDE))
    frames = np.repeat(ramp[None, ..., None], EPISODES * FRAMES, axis=0).repeat(3, axis=-1)
    episode = np.repeat(np.arange(EPISODES), FRAMES)
    for frame, number in zip(frames, episode, strict=True):
        top, left = random.integers(0, SIDE - 16, size=2)
        frame[top : top + 16, left : left + 16] = 30
        frame[top : top + 16, left : left + 16, number % TASKS] = 220
    folder = tmp_path_factory.mktemp("data") / "frames.zarr"
    group = zarr.create_group(folder, attributes={"tasks": ["red", "green", "blue"], "suite": "squares"})
    group.create_array("frames", data=frames)
    group.create_array("episode", data=episode.astype(np.int32))
    group.create_array("task", data=(episode % TASKS).astype(np.int16))
    group.attrs["complete"] = True
    return folder


@pytest.fixture
def make_config(store: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    """A run of seconds; keyword arguments are fields of ``RunConfig``."""

    def make(**changes: Any) -> RunConfig:
        tiny: dict[str, Any] = {"width": 32, "depth": 2, "heads": 2, "patch_size": 8, "image_size": 32}
        tiny |= {"class_tokens": 2, "decoder_width": 32, "decoder_depth": 2, "decoder_heads": 2, "mask_block": 2}
        settings: dict[str, Any] = {
            "data": str(store),
            "folder": str(tmp_path / "run"),
            "licence": "cc-by-4.0",
            "steps": 6,
            "batch_size": 8,
            "seed": 1,
            "evaluate_every": 3,
            "checkpoint_every": 2,
            "objective": PixioConfig(**tiny, drop_path=0.2),
            "optimizer": OptimizerConfig(base_lr=0.1, warmup=min(2, changes.get("steps", 6) - 1)),
            "views": ViewsConfig(held_out=0.25, held_out_views=12),
            "log": LogConfig(every=1, trackers=[]),
        }
        return RunConfig(**(settings | changes))

    return make


KILLED = """
import os, pickle, signal, sys
from pathlib import Path
from pixio_pretrain.evaluation import evaluate, loop

real, left = loop._step, int(sys.argv[2])

def step(*words, **names):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*words, **names)

loop._step = step
evaluate(pickle.loads(Path(sys.argv[1]).read_bytes()))
"""


@pytest.fixture
def assert_resumes(tmp_path: Path) -> Callable[[Any, int], None]:
    """Kill an evaluation (-9) in another process after so many steps, go on, and compare with one never killed."""
    from pixio_pretrain.evaluation import evaluate, read_record  # takes seconds, and other tests do without

    def check(config: Any, steps: int) -> None:
        told = tmp_path / "config.pickle"
        told.write_bytes(pickle.dumps(config))
        words = [sys.executable, "-c", KILLED, str(told), str(steps)]
        killed = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        folder = Path(config.folder)
        assert list(folder.glob("*/*/checkpoints/*"))
        assert not list(folder.glob("*/*/record.json"))
        whole = replace(config, folder=f"{config.folder}-whole")
        files = [evaluate(one) for one in (config, whole)]
        ended, unbroken = (read_record(file) for file in files)
        for part in ("metrics", "data", "facts", "settings"):
            assert ended[part] == unbroken[part]
        images = [np.load(file.parent / "images.npz") for file in files]
        assert images[0].files == images[1].files
        for name in images[0].files:
            np.testing.assert_array_equal(images[0][name], images[1][name])

    return check
