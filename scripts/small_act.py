"""The ACT of the quickstart and the benchmark: small enough to train in minutes on two cores."""

from lerobot_policy_pixio import PixioACTConfig

STEPS = 2000
"""Training steps that suffice for a few dozen demonstrations."""


def small_act(encoder: str | None, *, steps: int = STEPS, device: str = "cpu") -> PixioACTConfig:
    """Settings of a policy that plans 16 actions, does 8, and looks again.

    Args:
        encoder: What ``load_encoder`` reads; None for a blind policy.
        steps: Length of the training, which the learning rate's schedule spans.
        device: Where it runs.
    """
    return PixioACTConfig(
        encoder=encoder or "",
        blind=encoder is None,
        device=device,
        chunk_size=16,
        n_action_steps=8,
        dim_model=128,
        n_heads=4,
        dim_feedforward=256,
        n_encoder_layers=2,
        use_vae=False,
        optimizer_lr=1e-3,
        optimizer_lr_backbone=1e-3,
        scheduler_warmup_steps=steps // 20,
    )
