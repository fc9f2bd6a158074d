"""Settings of ``pixio_diffusion``: LeRobot's Diffusion Policy, seeing through a pre-trained encoder."""

from dataclasses import dataclass, field

from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig

from lerobot_policy_pixio.options import PixioOptions
from pixio_robot.errors import SettingError


@PreTrainedConfig.register_subclass("pixio_diffusion")
@dataclass
class PixioDiffusionConfig(PixioOptions, DiffusionConfig):
    """Diffusion's settings (see ``DiffusionConfig``) and those of its eyes (see ``PixioOptions``).

    LeRobot's resizing, cropping and keypoints have no effect: the encoder sees whole images at ``image_size``.
    """

    feature_dim: int = 256
    """Width of what the U-Net is told of each camera at each observation step; even."""

    # Diffusion's fields. The encoder normalises images itself, and one pass serves all cameras.
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {
            "VISUAL": NormalizationMode.IDENTITY,
            "STATE": NormalizationMode.MIN_MAX,
            "ACTION": NormalizationMode.MIN_MAX,
        }
    )
    use_separate_rgb_encoder_per_camera: bool = False

    def __post_init__(self) -> None:
        if self.feature_dim < 2 or self.feature_dim % 2:
            raise SettingError(f"feature_dim must be even and at least 2, not {self.feature_dim}.")
        self.spatial_softmax_num_keypoints = self.feature_dim // 2  # by which LeRobot sizes the U-Net
        super().__post_init__()
        if self.use_separate_rgb_encoder_per_camera:
            raise SettingError(
                "use_separate_rgb_encoder_per_camera must be false: one encoder serves all cameras, and the adapter "
                "tells them apart."
            )
        if self.resize_shape is not None or self.crop_shape is not None or self.crop_ratio != 1:
            raise SettingError(
                "resize_shape, crop_shape and crop_ratio have no effect here. Set image_size for the size that the "
                "encoder sees; crops belong into the data set's image transforms, or a cache's augmented variants."
            )
        longest = self.horizon - self.n_obs_steps + 1
        if not 1 <= self.n_action_steps <= longest:
            raise SettingError(
                f"A horizon of {self.horizon} steps, of which {self.n_obs_steps - 1} are past, leaves 1 to {longest} "
                f"to be executed, not n_action_steps={self.n_action_steps}."
            )
