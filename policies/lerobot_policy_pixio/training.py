"""Train a policy from a feature cache in memory: the frozen encoder has spoken, only the head is left to compute.

The result is a LeRobot run folder: ``lerobot-eval`` and ``PixioACTPolicy.from_pretrained`` read its checkpoints. The
order of frames, dropout and noise are functions of (seed, step), so a run that was killed continues bit for bit.
"""

import copy
import json
import logging
import os
import shutil
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import draccus
import numpy as np
import torch
from huggingface_hub.utils import tqdm
from lerobot.common.train_utils import (
    get_step_checkpoint_dir,
    load_training_step,
    save_checkpoint,
    should_save_checkpoint,
    update_last_checkpoint,
)
from lerobot.configs import FeatureType, PreTrainedConfig
from lerobot.configs.default import DatasetConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.optim import load_optimizer_state, load_scheduler_state
from lerobot.policies.factory import make_pre_post_processors
from lerobot.processor import PolicyProcessorPipeline
from lerobot.utils.constants import CHECKPOINTS_DIR, PRETRAINED_MODEL_DIR, TRAINING_STATE_DIR
from lerobot.utils.feature_utils import dataset_to_policy_features
from torch import Tensor

from lerobot_policy_pixio.configuration_pixio_act import PixioACTConfig
from lerobot_policy_pixio.demonstrations import Demonstrations
from lerobot_policy_pixio.frames import DECODER, DatasetFrames
from lerobot_policy_pixio.modeling_pixio_act import PixioACTPolicy
from pixio_robot.encoder import Encoder
from pixio_robot.errors import SettingError

logger = logging.getLogger(__name__)

Metrics = dict[str, float]


def train(
    config: PixioACTConfig,
    dataset_root: str | Path,
    cache: str | Path | None,
    folder: str | Path,
    *,
    steps: int,
    batch_size: int = 64,
    seed: int = 0,
    save_every: int = 1000,
    log_every: int = 50,
    encoder: Encoder | None = None,
) -> tuple[PixioACTPolicy, list[Metrics]]:
    """Train a policy, or continue a run that was killed.

    Args:
        config: The policy's settings; inputs and outputs are those of the data set where it names none. Its optimizer
            and scheduler presets and ``use_amp`` apply, as they do in ``lerobot-train``.
        dataset_root: A LeRobotDataset v3 folder.
        cache: The feature cache of that data set and the policy's encoder; None for a blind policy.
        folder: The run, with ``checkpoints/`` and ``log.jsonl``. If it holds the same run unfinished, that continues.
        steps: Optimizer steps.
        batch_size: Frames per step.
        seed: Of the initial weights, the order of frames, dropout and noise.
        save_every: Steps between checkpoints; the last step always saves one.
        log_every: Steps between lines of the log.
        encoder: The policy's encoder, if it is in memory already.

    Returns:
        The policy in evaluation mode, and the log: step, the losses, grad_norm, lr, samples_per_s and, for the data
        path alone, gather_samples_per_s.

    Raises:
        SettingError: If the folder holds another run, or training diverges.
        DataError: If the data set lacks what the policy needs.
        CacheError: If the cache is of another encoder, data set or setting.
        CheckpointError: If the encoder is not the one that the policy was trained with.
    """
    folder, frames = Path(folder), DatasetFrames(dataset_root)
    _claim(folder, config, frames.fingerprint, batch_size=batch_size, seed=seed)
    newest = max((folder / CHECKPOINTS_DIR).glob("[0-9]*"), key=lambda path: int(path.name), default=None)
    with torch.random.fork_rng(_cuda_devices(config)):
        if newest is None:
            policy = make_policy(config, frames, seed=seed, encoder=encoder)
        else:
            policy = PixioACTPolicy.from_pretrained(newest / PRETRAINED_MODEL_DIR, encoder=encoder)
        processors = make_processors(policy, frames)
        demonstrations = Demonstrations(frames, policy, processors[0], cache)
        trainer = Trainer(policy, demonstrations, steps=steps, batch_size=batch_size, seed=seed)
        start = 0 if newest is None else trainer.resume(newest)
        log = _read_log(folder, until=start)
        with tqdm(total=steps, initial=start, desc=f"training {folder.name}", unit="step") as progress:
            for step in range(start + 1, steps + 1):
                metrics = trainer.step(step)
                progress.update()
                if step % log_every == 0 or step == steps:
                    log.append({"step": step, **metrics, **trainer.speed()})
                    _write_log(folder, log)
                    progress.set_postfix({key: f"{log[-1][key]:.4g}" for key in ("loss", "samples_per_s")})
                if should_save_checkpoint(step, save_every, steps):
                    _save(folder, step, trainer, frames, *processors)
    return policy.eval(), log


class Trainer:
    """A policy, its optimizer and its demonstrations; one call per step.

    Args:
        policy: On its configuration's device already.
        demonstrations: Where batches come from.
        steps: Steps of the whole run; the scheduler needs to know.
        batch_size: Frames per step.
        seed: Of the order of frames, dropout and noise.
    """

    def __init__(
        self, policy: PixioACTPolicy, demonstrations: Demonstrations, *, steps: int, batch_size: int, seed: int = 0
    ) -> None:
        self.policy, self.demonstrations = policy.train(), demonstrations
        self.steps, self.batch_size, self.seed = steps, batch_size, seed
        preset, schedule = policy.config.get_optimizer_preset(), policy.config.get_scheduler_preset()
        optimizer = preset.build(policy.get_optim_params())
        assert isinstance(optimizer, torch.optim.Optimizer), "ACT's preset is one optimizer"
        self.optimizer = optimizer
        self.scheduler = schedule and schedule.build(optimizer, steps)
        self._clip = preset.grad_clip_norm
        self._trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        self._device = torch.device(str(policy.config.device))
        self._since, self._gathering, self._samples = time.perf_counter(), 0.0, 0

    def resume(self, checkpoint: Path) -> int:
        """Take optimizer and scheduler back to a checkpoint, and return its step."""
        state = checkpoint / TRAINING_STATE_DIR
        load_optimizer_state(self.optimizer, state)
        if self.scheduler is not None:
            load_scheduler_state(self.scheduler, state)
        update_last_checkpoint(checkpoint)
        return load_training_step(state)

    def step(self, step: int) -> Metrics:
        """Take optimizer step number ``step``, counted from 1, and return its losses, grad_norm and lr.

        Raises:
            SettingError: If the loss is not finite.
        """
        began = time.perf_counter()
        rows = sample_rows(len(self.demonstrations), self.batch_size, seed=self.seed, step=step)
        batch = self.demonstrations.gather(rows)
        self._gathering += time.perf_counter() - began
        self._samples += len(rows)
        torch.manual_seed(_mix(self.seed, step))
        with torch.autocast(self._device.type, enabled=self.policy.config.use_amp):
            loss, parts = self.policy(batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._trained, self._clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        lr = self.optimizer.param_groups[0]["lr"]
        if self.scheduler is not None:
            self.scheduler.step()
        return {"loss": loss.item(), **parts, "grad_norm": norm.item(), "lr": lr}

    def speed(self) -> Metrics:
        """Samples per second since the last call: of whole steps, and of the data path alone."""
        now = time.perf_counter()
        speed = {
            "samples_per_s": self._samples / (now - self._since),
            "gather_samples_per_s": self._samples / max(self._gathering, 1e-9),
        }
        self._since, self._gathering, self._samples = now, 0.0, 0
        return speed


def make_policy(
    config: PixioACTConfig, frames: DatasetFrames, *, seed: int, encoder: Encoder | None = None
) -> PixioACTPolicy:
    """Make a policy for a data set, with fresh weights of ``seed``, on its configuration's device.

    Actions are those of the data set, and so are observations where the configuration names none.
    """
    config = copy.deepcopy(config)
    features = dataset_to_policy_features(frames.dataset.features)
    outputs = {key: feature for key, feature in features.items() if feature.type is FeatureType.ACTION}
    config.output_features = outputs
    config.input_features = config.input_features or {
        key: feature for key, feature in features.items() if key not in outputs
    }
    with torch.random.fork_rng(_cuda_devices(config)):
        torch.manual_seed(seed)
        return PixioACTPolicy(config, encoder=encoder).to(config.device)


def make_processors(
    policy: PixioACTPolicy, frames: DatasetFrames
) -> tuple[PolicyProcessorPipeline, PolicyProcessorPipeline]:
    """LeRobot's pre- and post-processor of a policy, with the data set's statistics."""
    stats: Any = frames.dataset.meta.stats
    return make_pre_post_processors(policy.config, dataset_stats=stats)


def sample_rows(frames: int, batch_size: int, *, seed: int, step: int) -> Tensor:
    """Rows [b] of step number ``step`` (from 1): whole passes over the frames, each in an order of its own.

    What does not fill a batch at the end of a pass is left out of that pass; a data set of less than a batch is one.
    """
    per_pass = max(1, frames // batch_size)
    number, batch = divmod(step - 1, per_pass)
    return _shuffled(frames, seed, number)[batch * batch_size : (batch + 1) * batch_size]


@lru_cache(maxsize=1)
def _shuffled(frames: int, seed: int, number: int) -> Tensor:
    return torch.randperm(frames, generator=torch.Generator().manual_seed(_mix(seed, number, 1)))


def _mix(*numbers: int) -> int:
    """One seed from several numbers, without the collisions of their sum."""
    return int(np.random.SeedSequence(numbers).generate_state(1, dtype=np.uint64)[0])


def _cuda_devices(config: PixioACTConfig) -> list[int]:
    return [torch.cuda.current_device()] if str(config.device).startswith("cuda") else []


def _claim(folder: Path, config: PixioACTConfig, dataset_sha256: str, **settings: int) -> None:
    """Write down what run this folder holds, or check that it is the same one."""
    identity = {"policy": draccus.encode(config, PreTrainedConfig), "dataset_sha256": dataset_sha256, **settings}
    identity = json.loads(json.dumps(identity))
    file = folder / "run.json"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _write_whole(file, json.dumps(identity, indent=2) + "\n")
        return
    flat, found = ({**run.pop("policy"), **run} for run in (identity, json.loads(file.read_text())))
    differing = [
        f"{key} is {found.get(key)!r} there, {flat[key]!r} here" for key in flat if found.get(key) != flat[key]
    ]
    if differing:
        raise SettingError(f"{folder} holds another run ({'; '.join(differing)}). Choose another folder, or delete it.")


def _save(
    folder: Path,
    step: int,
    trainer: Trainer,
    frames: DatasetFrames,
    preprocessor: PolicyProcessorPipeline,
    postprocessor: PolicyProcessorPipeline,
) -> None:
    """Write a checkpoint in LeRobot's layout; it appears whole or not at all."""
    config, dataset = trainer.policy.config, frames.dataset
    run = TrainPipelineConfig(
        dataset=DatasetConfig(repo_id=dataset.repo_id, root=str(dataset.root), video_backend=DECODER),
        policy=config,
        output_dir=folder,
        steps=trainer.steps,
        batch_size=trainer.batch_size,
        seed=trainer.seed,
        optimizer=config.get_optimizer_preset(),
        scheduler=config.get_scheduler_preset(),
    )
    final = get_step_checkpoint_dir(folder, trainer.steps, step)
    scratch = final.with_name(f".writing-{final.name}")
    shutil.rmtree(scratch, ignore_errors=True)
    parts = (trainer.policy, trainer.optimizer, trainer.scheduler, preprocessor, postprocessor)
    save_checkpoint(scratch, step, run, *parts, num_processes=1, batch_size=trainer.batch_size)
    os.replace(scratch, final)
    update_last_checkpoint(final)


def _read_log(folder: Path, *, until: int) -> list[Metrics]:
    """The log of an earlier part of the run, up to the step at which it continues."""
    file = folder / "log.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    return [row for row in rows if row["step"] <= until]


def _write_log(folder: Path, log: list[Metrics]) -> None:
    _write_whole(folder / "log.jsonl", "".join(json.dumps(row) + "\n" for row in log))


def _write_whole(file: Path, text: str) -> None:
    """Write a file that a kill cannot leave half written."""
    scratch = file.with_name(f".writing-{file.name}")
    scratch.write_text(text)
    os.replace(scratch, file)
