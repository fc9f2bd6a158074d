"""The settings of a run. Hydra fills them in at the door; from there on they are plain dataclasses.

They are not frozen: OmegaConf would make a frozen node read-only, and every override would fail.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

from omegaconf import MISSING

from pixio_pretrain.curation.selection import CurationConfig
from pixio_pretrain.optim import OptimizerConfig, learning_rate
from pixio_pretrain.precision import resolve
from pixio_robot.errors import SettingError


@dataclass(kw_only=True)
class ViewsConfig:
    """Crops and the split.

    Attributes:
        crop_scale: Smallest area of a crop as a share of the frame; Pixio takes 0.2 of web images, small robot
            frames want more. 1 takes the largest square in the middle, and mirrors none.
        held_out: Share of the episodes that is never trained on.
        held_out_views: Crops of held-out frames on which the loss is measured.
        cameras: Cameras of a LeRobotDataset to read; all when absent.
        stride: Take one frame in so many of a LeRobotDataset, as neighbours are nearly alike.
    """

    crop_scale: float = 0.5
    held_out: float = 0.05
    held_out_views: int = 512
    cameras: list[str] | None = None
    stride: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.crop_scale <= 1 or not 0 < self.held_out < 1 or self.held_out_views < 1:
            raise SettingError(
                "views: crop_scale must lie in (0, 1], held_out in (0, 1), and held_out_views must be at least 1."
            )


@dataclass(kw_only=True)
class LoadingConfig:
    """How samples get into memory.

    With random access, only ``resident`` changes what a run learns; of a stream, ``workers`` and the buffer decide on
    the order.

    Attributes:
        resident: Keep all frames in the memory of the device that trains, and cut their crops there: for a GPU that
            waits for its CPU. Frames of one size, all of them readable; other chance, one draw for each process's part
            of a batch, and so another run.
        workers: Processes per training process that prepare batches; 0 prepares them in the training process.
        shuffle_buffer: Samples of a stream, per process and worker, among which the order is random; other sources
            shuffle everything.
        max_skipped: Samples that may turn out unreadable before the run gives up; below 1, their share.
    """

    resident: bool = False
    workers: int = 0
    shuffle_buffer: int = 2048
    max_skipped: float = 100

    def __post_init__(self) -> None:
        if min(self.workers, self.max_skipped) < 0 or self.shuffle_buffer < 1:
            raise SettingError(
                "loading: workers and max_skipped must not be negative, and shuffle_buffer must be at least 1."
            )


@dataclass(kw_only=True)
class ParallelConfig:
    """How a step is spread over processes and over time.

    The result is the same up to rounding, but for what is drawn or measured part by part: drop path, crops that are cut
    on the device (``loading.resident``), the order of a stream, and batch norms, which see one pass of ``accumulate``
    at a time (on CPUs, of one process).

    Attributes:
        strategy: What the processes of ``torchrun`` share: "ddp" (each holds all weights) or "fsdp" (FSDP2; weights,
            gradients and moments are split). A process on its own needs neither.
        accumulate: Forward and backward passes per optimiser step, each on its part of the batch.
        checkpoint_activations: Compute the inside of each block again in the backward pass rather than keep it.
        compile: Compile the model with ``torch.compile``; with "fsdp", each block by itself.
    """

    strategy: str = "ddp"
    accumulate: int = 1
    checkpoint_activations: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        if self.strategy not in ("ddp", "fsdp"):
            raise SettingError(f"parallel.strategy must be ddp or fsdp, not {self.strategy!r}.")
        if self.accumulate < 1:
            raise SettingError(f"parallel.accumulate must be at least 1, not {self.accumulate}.")


@dataclass(kw_only=True)
class LogConfig:
    """Where a run can be watched, besides ``log.jsonl`` and ``pictures/`` in its folder.

    Attributes:
        every: Steps between lines.
        trackers: Any of "tensorboard", "wandb", "trackio".
        project: The project's name at wandb and trackio.
    """

    every: int = 10
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])
    project: str = "pixio-pretrain"

    def __post_init__(self) -> None:
        if self.every < 1:
            raise SettingError(f"log.every must be at least 1, not {self.every}.")


@dataclass(kw_only=True)
class RunConfig:
    """One pre-training run.

    Attributes:
        data: Where the images are; see ``open_source``.
        licence: Licence of the encoder, for its model card: yours to choose, as far as the frames' allows.
        folder: Where logs, checkpoints and encoders go; a run that was stopped there is taken up again.
        steps: Optimiser steps.
        batch_size: Images per step, of all processes together.
        seed: Fixes weights, order, crops and masks.
        precision: "bf16" (autocast; weights stay float32), "fp32", or "auto": bf16 where the device is fast at it.
        device: "cpu", "cuda", ...; a process of ``torchrun`` takes the "cuda" device of its rank.
        threads: CPU threads of PyTorch; 0 leaves its own choice.
        max_bad_steps: Steps in a row with a non-finite loss or gradient, all of them left out, that end the run.
        evaluate_every: Steps between measurements on held-out samples, with a picture.
        checkpoint_every: Steps between checkpoints.
        objective: What is trained; a value of ``OBJECTIVES``.
        optimizer: See ``OptimizerConfig``.
        views: See ``ViewsConfig``.
        curation: See ``CurationConfig``.
        loading: See ``LoadingConfig``.
        parallel: See ``ParallelConfig``.
        log: See ``LogConfig``.
    """

    data: str = MISSING
    folder: str = MISSING
    licence: str = "unknown"
    steps: int = MISSING
    batch_size: int = 128
    seed: int = 0
    precision: str = "auto"
    device: str = "cpu"
    threads: int = 0
    max_bad_steps: int = 10
    evaluate_every: int = 250
    checkpoint_every: int = 100
    objective: Any = MISSING
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    curation: CurationConfig = field(default_factory=CurationConfig)
    loading: LoadingConfig = field(default_factory=LoadingConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "max_bad_steps", "evaluate_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name} must be at least 1, not {getattr(self, name)}.")
        self.precision = resolve(self.precision, self.device)
        if self.threads < 0:
            raise SettingError(f"threads must be at least 0, not {self.threads}.")

    @property
    def lr(self) -> float:
        """Peak learning rate."""
        return self.optimizer.base_lr * self.batch_size / 256

    def part(self, processes: int) -> int:
        """Samples of one forward pass in one of so many processes.

        Raises:
            SettingError: If the batch cannot be divided evenly.
        """
        parts = processes * self.parallel.accumulate
        if self.batch_size % parts:
            near = max(1, round(self.batch_size / parts)) * parts
            raise SettingError(
                f"batch_size={self.batch_size} cannot be divided evenly among {processes} processes with "
                f"parallel.accumulate={self.parallel.accumulate}; nearest: {near}."
            )
        return self.batch_size // parts

    def learning_rate(self, step: int) -> float:
        """Rate of one step, counted from 0; the peak is ``lr``."""
        shape = self.optimizer
        return learning_rate(
            step,
            steps=self.steps,
            warmup=shape.warmup,
            peak=self.lr,
            warmup_from=shape.warmup_from,
            min_lr=shape.min_lr,
        )

    def identity(self) -> dict[str, Any]:
        """The settings that decide the result, by dotted name: two runs that agree here end alike.

        Where the data lies, where results go, how often a run looks at itself, and how many processes share the work
        do not count: see ``ParallelConfig`` for how far the last of these changes the result. With batch norms,
        ``parallel.accumulate`` counts.
        """
        flat: dict[str, Any] = {}
        for key, value in asdict(self).items():
            flat |= (
                {f"{key}.{inner}": entry for inner, entry in value.items()} if isinstance(value, dict) else {key: value}
            )
        normed = {"parallel.accumulate": self.parallel.accumulate} if self.objective.batch_norms else {}
        return {key: value for key, value in flat.items() if not key.startswith(INCIDENTAL)} | normed


INCIDENTAL = (
    *("data", "folder", "licence", "device", "threads", "max_bad_steps", "evaluate_every", "checkpoint_every"),
    *("curation.table", "loading.workers", "loading.max_skipped", "log.", "parallel."),
)
"""Settings, or the beginnings of their names, that do not decide a run's result."""
