"""The body of ``lerobot-train`` as an object whose steps can be counted and timed."""

from collections.abc import Iterator
from typing import Any

from accelerate import Accelerator
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.datasets.sampler import EpisodeAwareSampler
from lerobot.policies.factory import make_pre_post_processors
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.scripts.lerobot_train import update_policy
from lerobot.utils.logging_utils import AverageMeter, MetricsTracker
from lerobot.utils.utils import cycle
from torch.utils.data import DataLoader

from lerobot_policy_pixio.frames import DECODER, DatasetFrames


class StockLoop:
    """LeRobot's data set, sampler, loader, preprocessor and update, for any of its policies.

    Args:
        frames: The demonstrations.
        policy: What is trained, on its configuration's device.
        batch_size: Samples per step.
        workers: Decoding processes.
        steps: Steps of the whole training, which a schedule of the learning rate needs to know.
    """

    def __init__(
        self, frames: DatasetFrames, policy: PreTrainedPolicy, *, batch_size: int, workers: int, steps: int
    ) -> None:
        meta, config = frames.dataset.meta, policy.config
        ahead = resolve_delta_timestamps(config, meta)
        dataset = LeRobotDataset(meta.repo_id, root=meta.root, delta_timestamps=ahead, video_backend=DECODER)
        sampler = EpisodeAwareSampler(
            frames.episodes["dataset_from_index"],
            frames.episodes["dataset_to_index"],
            drop_n_last_frames=getattr(config, "drop_n_last_frames", 0),
            shuffle=True,
        )
        loader = DataLoader(dataset, batch_size=batch_size, sampler=sampler, num_workers=workers, drop_last=True)
        self.batches: Iterator[dict[str, Any]] = cycle(loader)
        self.policy = policy
        stats: Any = meta.stats
        self.preprocessor, self.postprocessor = make_pre_post_processors(config, dataset_stats=stats)
        self.preset, schedule = config.get_optimizer_preset(), config.get_scheduler_preset()
        self.optimizer: Any = self.preset.build(policy.get_optim_params())
        self.scheduler = schedule and schedule.build(self.optimizer, steps)
        self.accelerator = Accelerator(cpu=str(config.device) == "cpu")
        meters = {name: AverageMeter(name) for name in ("loss", "grad_norm", "lr", "update_s")}
        self.tracker = MetricsTracker(batch_size, meta.total_frames, meta.total_episodes, meters)

    def load(self) -> dict[str, Any]:
        """Decode, collate and normalise one batch."""
        return self.preprocessor(next(self.batches))

    def step(self) -> float:
        """Train on one batch and return its loss."""
        settings = {"grad_clip_norm": self.preset.grad_clip_norm, "lr_scheduler": self.scheduler}
        update_policy(self.tracker, self.policy, self.load(), self.optimizer, accelerator=self.accelerator, **settings)
        return self.tracker.metrics["loss"].val
