"""Train a policy from a feature cache in memory: the frozen encoder has spoken, only the head is left to compute.

The result is a LeRobot run folder: ``lerobot-eval`` and ``from_pretrained`` read its checkpoints, and ``lerobot-train``
continues them. The order of frames, dropout and noise are functions of (seed, step), so a run that was killed
continues bit for bit.
"""

import copy
import logging
import signal
import time
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.utils import tqdm
from lerobot.common.train_utils import load_training_step, should_save_checkpoint, update_last_checkpoint
from lerobot.configs import FeatureType, PreTrainedConfig
from lerobot.configs.default import WandBConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.optim import load_optimizer_state, load_scheduler_state
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.processor import PolicyProcessorPipeline
from lerobot.utils.constants import PRETRAINED_MODEL_DIR, TRAINING_STATE_DIR
from torch import Tensor

from lerobot_policy_pixio.decoded import DecodedFrames
from lerobot_policy_pixio.demonstrations import Demonstrations
from lerobot_policy_pixio.evaluation import Evaluation
from lerobot_policy_pixio.frames import DatasetFrames
from lerobot_policy_pixio.fused_adam import as_in_presets, fuse
from lerobot_policy_pixio.logs import Metrics, RunLog, track
from lerobot_policy_pixio.modeling_pixio import Batch, PixioPolicy, check_finite
from lerobot_policy_pixio.options import PixioOptions
from lerobot_policy_pixio.run_folder import ELSEWHERE, RunFolder, lerobot_config
from pixio_robot.cache import FeatureCache
from pixio_robot.encoder import Encoder
from pixio_robot.errors import SettingError
from pixio_robot.runs import alone, termination

logger = logging.getLogger(__name__)

Processors = tuple[PolicyProcessorPipeline, PolicyProcessorPipeline]


def train(
    config: PixioOptions,
    dataset_root: str | Path | DatasetFrames,
    cache: str | Path | None,
    folder: str | Path,
    *,
    steps: int,
    batch_size: int = 64,
    seed: int = 0,
    save_every: int = 1000,
    log_every: int = 50,
    encoder: Encoder | None = None,
    pixels: DecodedFrames | None = None,
    memory_gb: float | None = None,
    evaluation: Evaluation | None = None,
    wandb: WandBConfig | None = None,
) -> tuple[PixioPolicy, list[Metrics]]:
    """Train a policy, or continue a run that was stopped.

    On SIGTERM the run saves itself at the end of the step and exits with code 143, as a terminated process does.

    Args:
        config: The policy's settings; inputs and outputs are those of the data set where it names none. Its optimizer
            and scheduler presets apply, as they do in ``lerobot-train``. With ``use_amp`` all but a frozen encoder
            computes in bfloat16; ``lerobot-train`` takes float16 on GPUs. Training starts from the weights in
            ``pretrained_path``, if it names some.
        dataset_root: A LeRobotDataset v3 folder, or its frames.
        cache: The feature cache of that data set and the policy's encoder; None for a blind policy, or with ``pixels``.
        folder: The run, with ``checkpoints/``, ``log.jsonl`` and, where TensorBoard is installed, ``tensorboard/``. If
            it holds the same run unfinished, that continues.
        steps: Optimizer steps.
        batch_size: Frames per step.
        seed: Of the initial weights, the order of frames, dropout and noise.
        save_every: Steps between checkpoints; the last step always saves one, and 0 saves no other.
        log_every: Steps between lines of the log; the last step always writes one, and 0 writes no other.
        encoder: The policy's encoder, if it is in memory already.
        pixels: The data set's decoded frames (see ``decode_frames``), for a policy that trains its encoder.
        memory_gb: Hold up to so many gigabytes of tokens in the device's memory; half of what is free when absent.
        evaluation: Rollouts at intervals, after the step's checkpoint if it has one; their results go to the log. What
            a run that stopped has not measured at its last checkpoint is measured when it goes on.
        wandb: Where to track the run, in LeRobot's own settings.

    Returns:
        The policy in evaluation mode, and the log: step, the losses, grad_norm, lr, samples_per_s, for the data path
        alone gather_samples_per_s, and what ``Evaluation.run`` gives at steps with an evaluation.

    Raises:
        SettingError: If the folder holds another run, one that is being trained or one that is beyond ``steps``,
            training diverges, or the policy trains its encoder from a cache.
        DataError: If the data set lacks what the policy needs.
        CacheError: If the cache is of another encoder, data set or setting.
        CheckpointError: If the encoder is not the one that the policy was trained with.
    """
    frames = dataset_root if isinstance(dataset_root, DatasetFrames) else DatasetFrames(dataset_root)
    settings: dict[str, Any] = {
        **_settings_of(frames, batch_size=batch_size, seed=seed),
        "steps": steps if config.get_scheduler_preset() else None,  # a constant rate may go on for longer
        **_facts_of(cache, pixels),
    }
    refusal = SettingError(f"Another process trains in {folder}. Wait for it, or choose another folder.")
    with alone(Path(folder) / ".lock", refusal), torch.random.fork_rng(_cuda_devices(config)):
        run = RunFolder(Path(folder), config, **settings)
        policy = _open_policy(run.newest, config, frames, seed=seed, encoder=encoder)
        processors = make_processors(policy, frames)
        demonstrations = Demonstrations(frames, policy, processors[0], cache, pixels=pixels, memory_gb=memory_gb)
        trainer = Trainer(policy, demonstrations, steps=steps, batch_size=batch_size, seed=seed)
        start = 0 if run.newest is None else trainer.resume(run.newest)
        if start > steps:
            raise SettingError(
                f"{run.path} has trained for {start} steps already, not steps={steps}: ask for at least as many, or "
                "choose another folder."
            )
        run.claim()
        lerobots = lerobot_config(
            run.path,
            policy,
            frames.dataset,
            steps=steps,
            batch_size=batch_size,
            seed=seed,
            save_every=save_every,
            log_every=log_every,
            evaluation=evaluation,
            wandb=wandb,
        )
        log = _run(trainer, run, lerobots, processors, evaluation, start)
    return policy.eval(), log


def check_run(config: PixioOptions, frames: DatasetFrames, folder: Path, *, batch_size: int, seed: int) -> None:
    """Refuse a folder that holds another run, before hours are spent on a cache. Arguments as for ``train``.

    Raises:
        SettingError: If it does.
    """
    RunFolder(Path(folder), config, whole=False, **_settings_of(frames, batch_size=batch_size, seed=seed))


def _settings_of(frames: DatasetFrames, *, batch_size: int, seed: int) -> dict[str, Any]:
    """What decides a run's result beside the policy, its cache and the number of steps."""
    return {
        "dataset_sha256": frames.fingerprint,
        "statistics_sha256": frames.statistics_fingerprint,
        "batch_size": batch_size,
        "seed": seed,
    }


def _open_policy(
    newest: Path | None, config: PixioOptions, frames: DatasetFrames, *, seed: int, encoder: Encoder | None
) -> PixioPolicy:
    """A new policy, or that of a run's newest checkpoint, on the device and with the encoder of this call."""
    if newest is None:
        return make_policy(config, frames, seed=seed, encoder=encoder)
    known = PreTrainedConfig.from_pretrained(newest / PRETRAINED_MODEL_DIR)
    for name in ELSEWHERE:
        setattr(known, name, getattr(config, name))
    return policy_class(config).from_pretrained(newest / PRETRAINED_MODEL_DIR, config=known, encoder=encoder)


def _run(
    trainer: "Trainer",
    run: RunFolder,
    config: TrainPipelineConfig,
    processors: Processors,
    evaluation: Evaluation | None,
    start: int,
) -> list[Metrics]:
    """Take all steps after ``start``: log, save, evaluate, and stop when asked to; give the log."""
    policy, steps = trainer.policy, config.steps
    with (
        closing(RunLog(run.path, step=start, wandb=track(config, start))) as log,
        tqdm(total=steps, initial=start, desc=f"training {run.path.name}", unit="step") as bar,
        termination() as end,
    ):
        missed = _due(evaluation, start, steps)
        if missed and not log.holds(start, "eval_success"):
            log.write({"step": start, **missed.run(policy, processors)})
        for step in range(start + 1, steps + 1):
            row = {"step": step, **trainer.step(step)}
            bar.update()
            due = _due(evaluation, step, steps)
            if due or step == steps or (config.log_freq and step % config.log_freq == 0):
                row |= trainer.speed()
                bar.set_postfix({key: f"{row[key]:.4g}" for key in ("loss", "samples_per_s")})
                log.write(row)
            if end.is_set() or should_save_checkpoint(step, config.save_freq, steps):
                log.keep(trainer.save(step, run, config, processors))
            if end.is_set() and (due or step < steps):
                logger.warning("Terminated at step %d of %d; the same command goes on.", step, steps)
                raise SystemExit(128 + signal.SIGTERM)
            if due:
                log.write({"step": step, **due.run(policy, processors)})
    return log.rows


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
        self, policy: PixioPolicy, demonstrations: Demonstrations, *, steps: int, batch_size: int, seed: int = 0
    ) -> None:
        self.policy, self.demonstrations = policy.train(), demonstrations
        self.batch_size, self.seed = batch_size, seed
        preset, schedule = policy.config.get_optimizer_preset(), policy.config.get_scheduler_preset()
        optimizer = preset.build(policy.get_optim_params())
        assert isinstance(optimizer, torch.optim.Adam), "the presets of ACT and diffusion are AdamW and Adam"
        self.optimizer = fuse(optimizer)
        self.scheduler = schedule and schedule.build(optimizer, steps)
        self._clip = preset.grad_clip_norm
        self._trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        self._device = torch.device(str(policy.config.device))
        self._working, self._gathering, self._samples = 0.0, 0.0, 0

    def resume(self, checkpoint: Path) -> int:
        """Take optimizer and scheduler back to a checkpoint, and return its step."""
        state = checkpoint / TRAINING_STATE_DIR
        with as_in_presets(self.optimizer):
            load_optimizer_state(self.optimizer, state)
        if self.scheduler is not None:
            load_scheduler_state(self.scheduler, state)
        update_last_checkpoint(checkpoint)
        return load_training_step(state)

    def save(self, step: int, run: RunFolder, config: TrainPipelineConfig, processors: Processors) -> Path:
        """Write a checkpoint, and return its place."""
        with as_in_presets(self.optimizer):
            return run.save(step, config, self.policy, self.optimizer, self.scheduler, processors)

    def step(self, step: int) -> Metrics:
        """Take optimizer step number ``step``, counted from 1, and return its losses, grad_norm and lr.

        Raises:
            SettingError: If the loss or its gradient is not finite; the weights are then those of the step before.
        """
        began = time.perf_counter()
        batch = self._gather(step)
        self._gathering += time.perf_counter() - began
        torch.manual_seed(_mix(self.seed, step))
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.policy.config.use_amp):
            loss, parts = self.policy(batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._trained, self._clip)
        check_finite(norm, "gradient's norm", self.policy.config)  # before it gets into the weights
        self.optimizer.step()
        self.optimizer.zero_grad()
        lr = self.optimizer.param_groups[0]["lr"]
        if self.scheduler is not None:
            self.scheduler.step()
        metrics = {"loss": loss.item(), **(parts or {}), "grad_norm": norm.item(), "lr": lr}
        self._working += time.perf_counter() - began
        self._samples += self.batch_size
        return metrics

    def speed(self) -> Metrics:
        """Samples per second since the last call: of whole steps, and of the data path alone."""
        speed = {
            "samples_per_s": self._samples / max(self._working, 1e-9),
            "gather_samples_per_s": self._samples / max(self._gathering, 1e-9),
        }
        self._working, self._gathering, self._samples = 0.0, 0.0, 0
        return speed

    def _gather(self, step: int) -> Batch:
        drawn = sample_rows(len(self.demonstrations), self.batch_size, seed=self.seed, step=step)
        rows = self.demonstrations.rows[drawn]
        if not self.demonstrations.variants:
            return self.demonstrations.gather(rows)
        chance = torch.Generator().manual_seed(_mix(self.seed, step, 2))
        variants = torch.randint(self.demonstrations.variants + 1, rows.shape, generator=chance)
        return self.demonstrations.gather(rows, variants)


def make_policy(
    config: PixioOptions, frames: DatasetFrames, *, seed: int, encoder: Encoder | None = None
) -> PixioPolicy:
    """Make a policy for a data set on its configuration's device, from ``pretrained_path`` or with weights of ``seed``.

    Actions are those of the data set, and so are observations where the configuration names none: of its cameras, those
    that ``frames`` have.
    """
    config = with_features(config, frames)
    kind, meta = policy_class(config), frames.dataset.meta
    lerobots: dict[str, Any] = {"dataset_stats": meta.stats, "dataset_meta": meta}  # as in LeRobot's make_policy
    with torch.random.fork_rng(_cuda_devices(config)):
        torch.manual_seed(seed)
        if config.pretrained_path is None:
            return kind(config, encoder=encoder, **lerobots).to(config.device)
        return kind.from_pretrained(config.pretrained_path, config=config, encoder=encoder, **lerobots)


def with_features(config: PixioOptions, frames: DatasetFrames) -> PixioOptions:
    """Settings with a data set's features: its actions, and its observations where the settings name none."""
    config = copy.deepcopy(config)
    features = frames.policy_features
    config.output_features = {key: feature for key, feature in features.items() if feature.type is FeatureType.ACTION}
    config.input_features = config.input_features or {
        key: feature for key, feature in features.items() if key not in config.output_features
    }
    return config


def policy_class(config: PixioOptions) -> type[PixioPolicy]:
    """The policy that some settings are of."""
    kind: Any = get_policy_class(config.type)
    return kind


def make_processors(policy: PixioPolicy, frames: DatasetFrames) -> Processors:
    """LeRobot's pre- and post-processor of a policy, with the data set's statistics."""
    stats: Any = frames.dataset.meta.stats
    return make_pre_post_processors(policy.config, dataset_stats=stats)


def _due(evaluation: Evaluation | None, step: int, steps: int) -> Evaluation | None:
    """The evaluation, if this step has one."""
    return evaluation if evaluation and step > 0 and (step % evaluation.every == 0 or step == steps) else None


def _facts_of(cache: str | Path | None, pixels: DecodedFrames | None) -> dict[str, Any]:
    """What decides, beside the encoder and the data set, which features a run sees."""
    known = {} if cache is None else FeatureCache.open(cache).attributes
    if pixels is not None:
        known = {"variants": pixels.variants, "augmentation": pixels.augmentation}
    return {f"cache_{fact}": known.get(fact) for fact in ("encoder_dtype", "pooled_to", "variants", "augmentation")}


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


def _cuda_devices(config: PixioOptions) -> list[int]:
    return [torch.cuda.current_device()] if str(config.device).startswith("cuda") else []
