"""Settings of ``pixio_act``: LeRobot's ACT, seeing through a frozen Pixio encoder."""

from dataclasses import dataclass, field
from typing import Literal

from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature, PreTrainedConfig
from lerobot.optim.schedulers import CosineAnnealingWithWarmupSchedulerConfig
from lerobot.policies.act.configuration_act import ACTConfig

from pixio_robot.errors import DataError, SettingError


@PreTrainedConfig.register_subclass("pixio_act")
@dataclass
class PixioACTConfig(ACTConfig):
    """ACT's settings (see ``ACTConfig``) and those of its eyes.

    ACT's ``vision_backbone`` fields have no effect here.

    Args:
        encoder: The frozen encoder: anything that ``pixio_robot.load_encoder`` reads.
        encoder_hash: Sha-256 of the encoder's sizes and weights. Written when a policy is made; a checkpoint refuses
            any other encoder.
        encoder_spec: The encoder's sizes, written with ``save_backbone`` so that the checkpoint needs no other file.
        image_size: Live images are resized to this many pixels a side; the encoder's native size when absent.
        classes: Class tokens for the policy: "each" of them, their "mean", their "concat"enation, or "none".
        patches: Patches for the policy: pooled by "average", "attention" or "spatial_softmax", or "none".
        grid: Patches are pooled to grid x grid tokens per camera.
        blind: Act on proprioception alone: the same policy without visual tokens, as a control.
        save_backbone: Store the encoder's weights in the checkpoint too.
        scheduler_warmup_steps: Warm the learning rate up over so many steps, then anneal it to zero along a cosine;
            a constant rate when absent.
    """

    encoder: str = "shipped:pixio_vitt16"
    encoder_hash: str | None = None
    encoder_spec: dict[str, int | str] | None = None
    image_size: int | None = None
    classes: Literal["each", "mean", "concat", "none"] = "each"
    patches: Literal["average", "attention", "spatial_softmax", "none"] = "average"
    grid: int = 4
    blind: bool = False
    save_backbone: bool = False
    scheduler_warmup_steps: int | None = None

    # ACT's fields, with defaults for a frozen encoder and a fresh adapter. The encoder normalises images itself.
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {
            "VISUAL": NormalizationMode.IDENTITY,
            "STATE": NormalizationMode.MEAN_STD,
            "ACTION": NormalizationMode.MEAN_STD,
        }
    )
    pretrained_backbone_weights: str | None = None
    optimizer_lr: float = 1e-4
    optimizer_lr_backbone: float = 1e-4
    push_to_hub: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("grid", "image_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingError(f"{name} must be at least 1, not {value}.")

    @property
    def image_features(self) -> dict[str, PolicyFeature]:
        """The cameras that the policy looks through: none if it is blind."""
        return {} if self.blind else super().image_features

    def get_scheduler_preset(self) -> CosineAnnealingWithWarmupSchedulerConfig | None:  # type: ignore[override]
        """Warm-up and cosine, if asked for."""
        if self.scheduler_warmup_steps is None:
            return None
        return CosineAnnealingWithWarmupSchedulerConfig(num_warmup_steps=self.scheduler_warmup_steps)

    def validate_features(self) -> None:
        """Check that the inputs can carry this policy.

        Raises:
            DataError: If there is no proprioception, or no camera to look through.
        """
        inputs = ", ".join(self.input_features or {}) or "nothing"
        if self.robot_state_feature is None:
            raise DataError(f"The policy needs 'observation.state' among its inputs; they are: {inputs}.")
        if not self.blind and not self.image_features:
            raise DataError(
                f"The policy needs a camera, such as 'observation.images.top', among its inputs; they are: {inputs}. "
                "For a policy without eyes, set blind=true."
            )
        for name, feature in self.image_features.items():
            if feature.type is FeatureType.VISUAL and feature.shape[0] != 3:
                raise DataError(f"The camera {name!r} has {feature.shape[0]} channels; the encoder reads RGB.")
