"""The folder of a training run: whose it is, and checkpoints that a kill cannot leave half written."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import draccus
from lerobot.common.train_utils import get_step_checkpoint_dir, save_checkpoint, update_last_checkpoint
from lerobot.configs import PreTrainedConfig
from lerobot.configs.default import DatasetConfig, EvalConfig, WandBConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.processor import PolicyProcessorPipeline
from lerobot.utils.constants import CHECKPOINTS_DIR
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lerobot_policy_pixio.evaluation import Evaluation
from lerobot_policy_pixio.frames import DECODER
from pixio_robot.drafts import write_whole
from pixio_robot.errors import SettingError

ELSEWHERE = ("device", "encoder")
"""Settings of where a run goes on, and where its encoder lies then: who that is, its hash in the checkpoint says."""
INERT = ("optimizer_lr_backbone",)
"""A setting of LeRobot's that has no effect here."""


class RunFolder:
    """A training run on disk: ``run.json`` says which it is, and ``checkpoints/`` are LeRobot's.

    Args:
        path: The folder; ``claim`` makes it.
        config: The policy's settings.
        whole: Whether ``settings`` are all there are; else those that are not among them are not compared.
        **settings: What else decides the result, such as the data set's hash, the cache's facts, batch size and seed.

    Attributes:
        path: The folder.

    Raises:
        SettingError: If the folder holds another run.
    """

    def __init__(self, path: Path, config: PreTrainedConfig, *, whole: bool = True, **settings: Any) -> None:
        self.path = path
        told = draccus.encode(config, PreTrainedConfig)
        policy = {name: value for name, value in told.items() if name not in ELSEWHERE + INERT}
        self._identity = json.loads(json.dumps({"policy": policy, **settings}))
        if not self._file.is_file():
            return
        flat, found = ({**run["policy"], **run} for run in (self._identity, json.loads(self._file.read_text())))
        unknown = set() if whole else found.keys() - flat.keys()
        differing = [
            f"{key} is {repr(found[key]) if key in found else 'not written down'} there, {flat.get(key)!r} here"
            for key in flat | found
            if key not in ("policy", *ELSEWHERE, *INERT, *unknown) and found.get(key) != flat.get(key)
        ]
        if differing:
            raise SettingError(
                f"{path} holds another run ({'; '.join(differing)}). Choose another folder, or delete it."
            )

    def claim(self) -> None:
        """Write down what run this folder holds."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not self._file.is_file():
            write_whole(self._file, json.dumps(self._identity, indent=2) + "\n")

    @property
    def _file(self) -> Path:
        return self.path / "run.json"

    @property
    def newest(self) -> Path | None:
        """The checkpoint of the latest step, if there is one."""
        found = (self.path / CHECKPOINTS_DIR).glob("[0-9]*")
        return max(found, key=lambda path: int(path.name), default=None)

    def save(
        self,
        step: int,
        config: TrainPipelineConfig,
        policy: PreTrainedPolicy,
        optimizer: Optimizer,
        scheduler: LRScheduler | None,
        processors: tuple[PolicyProcessorPipeline, PolicyProcessorPipeline],
    ) -> Path:
        """Write a checkpoint in LeRobot's layout; it appears whole or not at all.

        Returns:
            ``checkpoints/<step>``, of which ``checkpoints/last`` is another name.
        """
        final = get_step_checkpoint_dir(self.path, config.steps, step)
        scratch = final.with_name(f".writing-{final.name}")
        shutil.rmtree(scratch, ignore_errors=True)
        state = (policy, optimizer, scheduler, *processors)
        save_checkpoint(scratch, step, config, *state, num_processes=1, batch_size=config.batch_size)
        os.replace(scratch, final)
        update_last_checkpoint(final)
        return final


def lerobot_config(
    folder: Path,
    policy: PreTrainedPolicy,
    dataset: LeRobotDataset,
    *,
    steps: int,
    batch_size: int,
    seed: int,
    save_every: int,
    log_every: int,
    evaluation: Evaluation | None,
    wandb: WandBConfig | None,
) -> TrainPipelineConfig:
    """The run in LeRobot's words, as ``train_config.json`` of each checkpoint: ``lerobot-train`` can go on with it."""
    config = policy.config
    return TrainPipelineConfig(
        dataset=DatasetConfig(repo_id=dataset.repo_id, root=str(dataset.root), video_backend=DECODER),
        policy=config,
        output_dir=folder,
        job_name=folder.name,
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        save_freq=save_every,
        log_freq=log_every,
        optimizer=config.get_optimizer_preset(),
        scheduler=config.get_scheduler_preset(),
        env=evaluation.env if evaluation else None,
        env_eval_freq=evaluation.every if evaluation else 0,
        eval=EvalConfig(
            n_episodes=evaluation.n_episodes,
            batch_size=evaluation.batch_size,
            use_async_envs=evaluation.use_async_envs,
        )
        if evaluation
        else EvalConfig(),
        wandb=wandb or WandBConfig(),
    )
