"""Training a policy whose encoder learns, too: on frames that were decoded once, as ``training.train`` is on tokens."""

import copy
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from lerobot.common.train_utils import should_save_checkpoint
from lerobot.processor import PolicyProcessorPipeline
from lerobot.utils.constants import PRETRAINED_MODEL_DIR
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from lerobot_policy_pixio.demonstrations import Demonstrations
from lerobot_policy_pixio.frames import DatasetFrames
from lerobot_policy_pixio.logs import Metrics, RunLog
from lerobot_policy_pixio.modeling_pixio import Batch, PixioPolicy
from lerobot_policy_pixio.options import PixioOptions
from lerobot_policy_pixio.run import RunFolder, lerobot_config
from lerobot_policy_pixio.training import Trainer, make_policy, make_processors, policy_class
from pixio_robot import Encoder

Frames = Mapping[str, NDArray[np.uint8]]
"""Camera to all frames of a data set in order, uint8 [n 3 h w]."""
BLOCK = 512
"""Frames that are decoded at once."""


def decode_frames(frames: DatasetFrames, folder: Path) -> Frames:
    """Decode a data set's videos once, for all who train on it: as files that are mapped into memory.

    Args:
        frames: The data set.
        folder: Where the files go, one ``.npy`` per camera; they are made if they are not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        return {camera: _decode(frames, camera, folder / f"{camera}.npy") for camera in frames.cameras}


def _decode(frames: DatasetFrames, camera: str, path: Path) -> NDArray[np.uint8]:
    if not path.exists():
        draft = path.with_suffix(".writing")
        shape = (len(frames), *frames.read(camera, 0, 1).shape[1:])
        decoded = np.lib.format.open_memmap(draft, mode="w+", dtype=np.uint8, shape=shape)
        for start in tqdm(range(0, len(frames), BLOCK), desc=f"decode {camera}", unit="block"):
            stop = min(start + BLOCK, len(frames))
            decoded[start:stop] = frames.read(camera, start, stop).numpy()
        decoded.flush()
        draft.replace(path)
    return np.load(path, mmap_mode="r")


class LiveDemonstrations(Demonstrations):
    """Demonstrations whose batches hold images, for a policy that trains its encoder.

    Args:
        frames: The data set.
        policy: The policy that will be trained.
        preprocessor: The policy's own.
        pixels: Each camera's frames, under the policy's names.
    """

    def __init__(
        self, frames: DatasetFrames, policy: PixioPolicy, preprocessor: PolicyProcessorPipeline, pixels: Frames
    ) -> None:
        without_eyes = copy.copy(policy.config)
        without_eyes.blind = True  # all but the tokens, which there are none of
        twin: Any = SimpleNamespace(config=without_eyes, eyes=None)
        super().__init__(frames, twin, preprocessor)
        self._pixels = {camera: pixels[camera] for camera in policy.config.image_features}
        self._device = torch.device(str(policy.config.device))

    def gather(self, rows: Tensor, variants: Tensor | None = None) -> Batch:
        """Gather the batch of some frames, as ``Demonstrations`` does: images uint8 [b 3 h w], or [b t 3 h w]."""
        batch = super().gather(rows, variants)
        seen = rows
        if self._behind is not None:
            starts, ends = self._starts[rows, None], self._ends[rows, None]
            seen = (rows[:, None] + self._behind).clamp(starts, ends - 1)
        where = seen.cpu().numpy()
        return batch | {camera: torch.from_numpy(all_[where]).to(self._device) for camera, all_ in self._pixels.items()}


def train_live(
    config: PixioOptions,
    frames: DatasetFrames,
    pixels: Frames,
    folder: Path,
    *,
    steps: int,
    batch_size: int,
    seed: int,
    encoder: Encoder,
    save_every: int,
    log_every: int = 50,
) -> list[Metrics]:
    """Train a policy and its encoder, or continue a run that was stopped; see ``training.train``.

    Args:
        config: The policy's settings.
        frames: The data set.
        pixels: Its frames.
        folder: The run.
        steps: Optimizer steps.
        batch_size: Frames per step.
        seed: Of the policy's initial weights, the order of frames, dropout and noise.
        encoder: What the policy's encoder begins as.
        save_every: Steps between checkpoints.
        log_every: Steps between lines of the log.

    Returns:
        The log.

    Raises:
        SettingError: If the folder holds another run, or training diverges.
        DataError: If the data set lacks what the policy needs.
    """
    run = RunFolder(folder, config, dataset_sha256=frames.fingerprint, batch_size=batch_size, seed=seed, variants=0)
    newest = run.newest
    if newest is None:
        policy = make_policy(config, frames, seed=seed, encoder=encoder)
    else:
        policy = policy_class(config).from_pretrained(newest / PRETRAINED_MODEL_DIR, encoder=encoder)
    processors = make_processors(policy, frames)
    demonstrations = LiveDemonstrations(frames, policy, processors[0], pixels)
    trainer = Trainer(policy, demonstrations, steps=steps, batch_size=batch_size, seed=seed)
    start = 0 if newest is None else trainer.resume(newest)
    run.claim()
    facts: dict[str, Any] = {"steps": steps, "batch_size": batch_size, "seed": seed}
    facts |= {"save_every": save_every, "log_every": log_every, "evaluation": None, "wandb": None}
    lerobots = lerobot_config(folder, policy, frames.dataset, **facts)
    with (
        closing(RunLog(folder, step=start)) as log,
        tqdm(total=steps, initial=start, desc=f"training {folder.name}", unit="step") as bar,
    ):
        for step in range(start + 1, steps + 1):
            row = {"step": step, **trainer.step(step)}
            bar.update()
            if step == steps or step % log_every == 0:
                log.write(row | trainer.speed())
            if should_save_checkpoint(step, save_every, steps):
                trainer.save(step, run, lerobots, processors)
    return log.rows
