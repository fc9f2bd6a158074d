"""The settings of a run. Hydra fills them in at the door; from there on they are plain dataclasses.

They are not frozen: OmegaConf would make a frozen node read-only, and every override would fail.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

from omegaconf import MISSING

from pixio_robot.errors import SettingError


@dataclass(kw_only=True)
class OptimizerConfig:
    """AdamW and its schedule.

    Attributes:
        base_lr: Learning rate per 256 images of batch; Pixio's is 2.5e-5 for ImageNet.
        warmup: Steps over which the rate rises linearly from 0; it then falls to 0 along a cosine.
        weight_decay: Decoupled decay of matrices, tokens and positions; biases and norms have none.
        betas: Decay of the moments.
    """

    base_lr: float = 2.5e-5
    warmup: int = 500
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)

    def __post_init__(self) -> None:
        if self.base_lr <= 0 or self.warmup < 0 or self.weight_decay < 0:
            raise SettingError("optimizer: base_lr must be above 0; warmup and weight_decay must not be below 0.")


@dataclass(kw_only=True)
class ViewsConfig:
    """Crops and the split.

    Attributes:
        crop_scale: Smallest area of a crop as a share of the frame; Pixio takes 0.2 of web images, small robot
            frames want more. 1 takes whole frames.
        held_out: Share of the episodes that is never trained on.
        held_out_views: Crops of held-out frames on which the loss is measured.
    """

    crop_scale: float = 0.5
    held_out: float = 0.05
    held_out_views: int = 512

    def __post_init__(self) -> None:
        if not 0 < self.crop_scale <= 1 or not 0 < self.held_out < 1 or self.held_out_views < 1:
            raise SettingError(
                "views: crop_scale must lie in (0, 1], held_out in (0, 1), and held_out_views must be at least 1."
            )


@dataclass(kw_only=True)
class RunConfig:
    """One pre-training run.

    Attributes:
        data: A zarr group of frames, or a folder of images.
        licence: Licence of the encoder, for its model card: yours to choose, as far as the frames' allows.
        folder: Where log, checkpoint and encoder go; a run that was stopped there is taken up again.
        steps: Optimiser steps.
        batch_size: Images per step.
        seed: Fixes weights, order, crops and masks.
        precision: "bf16" (autocast; weights stay float32) or "fp32".
        device: "cpu", "cuda", ...
        threads: CPU threads of PyTorch; 0 leaves its own choice.
        workers: Processes that prepare batches; 0 prepares them in the training process.
        log_every: Steps between lines of the log.
        evaluate_every: Steps between measurements on held-out frames.
        checkpoint_every: Steps between checkpoints.
        objective: What is trained; a value of ``OBJECTIVES``.
        optimizer: See ``OptimizerConfig``.
        views: See ``ViewsConfig``.
    """

    data: str = MISSING
    folder: str = MISSING
    licence: str = "unknown"
    steps: int = MISSING
    batch_size: int = 128
    seed: int = 0
    precision: str = "bf16"
    device: str = "cpu"
    threads: int = 0
    workers: int = 0
    log_every: int = 10
    evaluate_every: int = 250
    checkpoint_every: int = 100
    objective: Any = MISSING
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "evaluate_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.precision not in ("bf16", "fp32"):
            raise SettingError(f"precision must be bf16 or fp32, not {self.precision!r}.")
        if min(self.threads, self.workers) < 0:
            raise SettingError("threads and workers must not be negative.")

    @property
    def lr(self) -> float:
        """Peak learning rate."""
        return self.optimizer.base_lr * self.batch_size / 256

    def identity(self) -> dict[str, Any]:
        """The settings that decide the result, by dotted name: two runs that agree here end alike.

        Where the data lies, where results go, and how often a run looks at itself do not count.
        """
        incidental = {
            "data",
            "folder",
            "licence",
            "threads",
            "workers",
            "log_every",
            "evaluate_every",
            "checkpoint_every",
        }
        flat: dict[str, Any] = {}
        for key, value in asdict(self).items():
            if isinstance(value, dict):
                flat |= {f"{key}.{inner}": entry for inner, entry in value.items()}
            elif key not in incidental:
                flat[key] = value
        return flat
