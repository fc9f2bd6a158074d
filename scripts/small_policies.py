"""Policies small enough to train in minutes on two cores, with Pixio's eyes or with LeRobot's own."""

from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig

from lerobot_policy_pixio import PixioACTConfig, PixioDiffusionConfig

STEPS = 2000
"""Training steps that suffice for a few dozen demonstrations."""

ACT_HEAD = {
    "chunk_size": 16,
    "n_action_steps": 8,
    "dim_model": 128,
    "n_heads": 4,
    "dim_feedforward": 256,
    "n_encoder_layers": 2,
    "use_vae": False,
    "dropout": 0.0,
}
"""An ACT that plans 16 actions, does 8, and looks again. It drops nothing out: drawing those random numbers is much of
a step on a CPU, and a training of a few thousand steps does without."""

DIFFUSION_HEAD = {
    "n_obs_steps": 1,
    "horizon": 16,
    "n_action_steps": 8,
    "drop_n_last_frames": 8,
    "down_dims": (64, 128, 256),
    "diffusion_step_embed_dim": 64,
    "noise_scheduler_type": "DDIM",
    "num_inference_steps": 10,
    "prediction_type": "sample",
    "optimizer_lr": 1e-3,
}
"""A diffusion policy of the same rhythm; ten steps of denoising. It predicts actions, not noise: of few training steps
it then makes much more (15 of 40 pick-and-place scenes solved rather than 1 of 40, in 1 400 steps)."""


def small_act(encoder: str, *, grid: int | None = None, steps: int = STEPS, device: str = "cpu") -> PixioACTConfig:
    """An ACT on a frozen encoder.

    Args:
        encoder: What ``load_encoder`` reads.
        grid: What patches are pooled to; the policy's own default when absent.
        steps: Length of the training, which the learning rate's schedule spans.
        device: Where it runs.
    """
    return PixioACTConfig(
        encoder=encoder,
        grid=grid,
        device=device,
        optimizer_lr=1e-3,
        scheduler_warmup_steps=steps // 20,
        **ACT_HEAD,
    )


def small_diffusion(
    encoder: str, *, grid: int | None = None, steps: int = STEPS, device: str = "cpu"
) -> PixioDiffusionConfig:
    """A diffusion policy on a frozen encoder."""
    return PixioDiffusionConfig(
        encoder=encoder,
        grid=grid,
        device=device,
        feature_dim=128,
        scheduler_warmup_steps=steps // 20,
        **DIFFUSION_HEAD,
    )


def resnet_act(*, device: str = "cpu") -> ACTConfig:
    """LeRobot's own ACT of the same size: a ResNet-18 that learns from nothing, like all of it, at 1e-4."""
    return ACTConfig(
        device=device,
        pretrained_backbone_weights=None,
        optimizer_lr=1e-4,
        optimizer_lr_backbone=1e-4,
        push_to_hub=False,
        **ACT_HEAD,
    )


def resnet_diffusion(*, steps: int = STEPS, device: str = "cpu") -> DiffusionConfig:
    """LeRobot's own diffusion policy of the same size, group norm in its ResNet-18 as one does from nothing."""
    return DiffusionConfig(
        device=device,
        pretrained_backbone_weights=None,
        use_group_norm=True,
        use_separate_rgb_encoder_per_camera=False,
        scheduler_warmup_steps=steps // 20,
        push_to_hub=False,
        **DIFFUSION_HEAD,
    )
