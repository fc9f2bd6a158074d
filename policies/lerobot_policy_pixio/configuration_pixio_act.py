"""Settings of ``pixio_act``: LeRobot's ACT, seeing through a pre-trained encoder."""

import logging
from dataclasses import dataclass, field

from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.optim.schedulers import CosineAnnealingWithWarmupSchedulerConfig
from lerobot.policies.act.configuration_act import ACTConfig

from lerobot_policy_pixio.options import PixioOptions

logger = logging.getLogger(__name__)


@PreTrainedConfig.register_subclass("pixio_act")
@dataclass
class PixioACTConfig(PixioOptions, ACTConfig):
    """ACT's settings (see ``ACTConfig``) and those of its eyes (see ``PixioOptions``).

    ``optimizer_lr_backbone`` has no effect: what is trained of the encoder learns at ``optimizer_lr_encoder``.
    """

    scheduler_warmup_steps: int | None = None
    """Warm the learning rate up over so many steps, then anneal it to zero along a cosine; constant when absent."""

    # ACT's fields, with defaults for a fresh adapter. The encoder normalises images itself.
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {
            "VISUAL": NormalizationMode.IDENTITY,
            "STATE": NormalizationMode.MEAN_STD,
            "ACTION": NormalizationMode.MEAN_STD,
        }
    )
    optimizer_lr: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimizer_lr_backbone != ACTConfig.optimizer_lr_backbone:  # which early checkpoints hold
            logger.warning("optimizer_lr_backbone has no effect: the encoder learns at optimizer_lr_encoder.")

    def get_scheduler_preset(self) -> CosineAnnealingWithWarmupSchedulerConfig | None:  # type: ignore[override]
        """Warm-up and cosine, if asked for."""
        if self.scheduler_warmup_steps is None:
            return None
        return CosineAnnealingWithWarmupSchedulerConfig(num_warmup_steps=self.scheduler_warmup_steps)
