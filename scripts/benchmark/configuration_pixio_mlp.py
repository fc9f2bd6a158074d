"""Settings of ``pixio_mlp``: CortexBench's behaviour cloning, a small network on the last few frames' features."""

from dataclasses import dataclass, field
from typing import Any

from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.optim import AdamConfig

from lerobot_policy_pixio.options import PixioOptions
from pixio_robot.errors import SettingError


@PreTrainedConfig.register_subclass("pixio_mlp")
@dataclass
class PixioMLPConfig(PixioOptions, PreTrainedConfig):
    """The protocol of CortexBench's MuJoCo suites (arXiv 2303.18240, section 4 and appendix), in our own words.

    An encoder with class tokens is read by their mean, another by the mean of its patches.

    Args:
        n_obs_steps: Frames that the policy sees; each but the first is told by its difference from the one before.
        hidden_dims: Widths of the network's hidden layers.
        optimizer_lr: Learning rate of Adam.
    """

    n_obs_steps: int = 3
    hidden_dims: tuple[int, ...] = (256, 256, 256)
    optimizer_lr: float = 1e-3

    # The encoder normalises images, and batch norm everything that reaches the network. Actions are predicted as they
    # are, so that the loss weighs them as the robot's own units do.
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: dict.fromkeys(("VISUAL", "STATE", "ENV", "ACTION"), NormalizationMode.IDENTITY)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_obs_steps < 1 or not self.hidden_dims:
            raise SettingError(f"n_obs_steps={self.n_obs_steps}, hidden_dims={self.hidden_dims}: at least one of each.")

    @property
    def observation_delta_indices(self) -> list[int]:
        """The last frames, the present among them."""
        return list(range(1 - self.n_obs_steps, 1))

    @property
    def action_delta_indices(self) -> list[int]:
        """The present's action."""
        return [0]

    @property
    def reward_delta_indices(self) -> None:
        """No rewards."""
        return

    def get_optimizer_preset(self) -> AdamConfig:
        """Adam, without decay."""
        return AdamConfig(lr=self.optimizer_lr, weight_decay=0.0)

    def get_scheduler_preset(self) -> Any:
        """A constant rate."""
        return
