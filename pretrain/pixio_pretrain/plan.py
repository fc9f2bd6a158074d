"""What a run would cost, before it is paid for: size, operations, memory of each GPU, hours."""

from dataclasses import dataclass

import torch

from pixio_pretrain.config import RunConfig
from pixio_pretrain.costs import Costs, count_costs
from pixio_pretrain.precision import check_device
from pixio_pretrain.speed import matmul_ceiling
from pixio_robot.errors import SettingError, UnknownNameError

GIB = 2**30
FLOAT = 4
MOMENTS = {"adamw": 2, "lars": 1}
SPARE = 0.9
"""Share of a GPU's memory that tensors may fill; the rest is for the context, communication and fragments."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """What a GPU can do.

    Attributes:
        name: How to call it.
        memory: In bytes.
        peak: Operations per second in matrix products, by precision.
    """

    name: str
    memory: float
    peak: dict[str, float]


# Dense rates of NVIDIA's data sheets, SXM modules; fp32 without TF32, as PyTorch computes by default. Memory as CUDA
# reports it.
GPUS = {
    "h200": Gpu(name="H200", memory=139 * GIB, peak={"bf16": 989e12, "fp32": 67e12}),
    "h100": Gpu(name="H100", memory=79 * GIB, peak={"bf16": 989e12, "fp32": 67e12}),
    "a100": Gpu(name="A100", memory=79 * GIB, peak={"bf16": 312e12, "fp32": 19.5e12}),
}


@dataclass(kw_only=True)
class PlanConfig(RunConfig):
    """A run, and the machine that it may be run on.

    Attributes:
        gpus: How many.
        gpu: Which kind: "h200", "h100", "a100" (80 GB), or "measured": this machine's, the run's device, by a quick
            measurement.
        utilisation: Share of the peak rate that training reaches; 0.3 to 0.5 is usual. Only what the model needs
            counts, not what is computed again.
    """

    data: str = ""
    folder: str = ""
    gpus: int = 8
    gpu: str = "h100"
    utilisation: float = 0.4

    def __post_init__(self) -> None:
        if self.precision == "auto" and self.gpu in GPUS:
            self.precision = "bf16"  # all of them are fast at it, whatever this machine is
        super().__post_init__()
        if self.gpus < 1:
            raise SettingError(f"gpus must be at least 1, not {self.gpus}.")
        if not 0 < self.utilisation <= 1:
            raise SettingError(f"utilisation must lie in (0, 1], not {self.utilisation}.")
        if self.gpu not in (*GPUS, "measured"):
            raise UnknownNameError("gpu", self.gpu, [*GPUS, "measured"])
        self.part(self.gpus)  # refuses what cannot be divided

    @property
    def samples(self) -> int:
        """Samples of one forward pass on one GPU."""
        return self.part(self.gpus)


def plan(config: PlanConfig) -> str:
    """Report what a run would cost: text of a few tables.

    Raises:
        UnknownNameError: If there is no such encoder.
        SettingError: If settings do not fit together.
    """
    gpu = _measure(config) if config.gpu == "measured" else GPUS[config.gpu]
    costs = count_costs(config.objective, precision=config.precision)
    return "\n\n".join(
        [
            f"{config.objective.name} in {config.precision}: {config.steps} steps of {config.batch_size} samples on "
            f"{config.gpus} x {gpu.name}",
            _describe_model(costs),
            _describe_memory(costs, config, gpu),
            _describe_time(costs, config, gpu),
        ]
    )


def memory(costs: Costs, config: PlanConfig, *, strategy: str, recompute: bool) -> dict[str, float]:
    """Bytes on each of N GPUs, by what they are for; together they bound what a step needs at once from above.

    With P parameters, T of them trained, m moments of the optimiser, and float32 as master precision:

    - weights 4 P, gradients 4 T, moments 4 m T; FSDP2 splits them N ways, but for gradients that are accumulated and
      for a teacher;
    - communication: DDP copies the gradients into buckets, 4 T; FSDP2 gathers what lies in no block, two blocks (the
      next one is fetched early), and one block's gradients, 4 bytes each;
    - half-precision copies of the weights that autocast makes and keeps for the backward pass, measured;
    - activations kept for the backward pass, measured.

    Args:
        costs: See ``count_costs``.
        config: The run and the machine.
        strategy: "ddp" or "fsdp".
        recompute: As ``parallel.checkpoint_activations``.
    """
    parameters, trained = FLOAT * costs.total.parameters, FLOAT * costs.total.trained
    kept = costs.activations.recomputed if recompute else costs.activations.whole
    activations: dict[str, float] = {
        "half-precision copies": costs.activations.weights,
        "activations": config.samples * kept,
    }
    moments = MOMENTS[config.optimizer.name] * trained
    if strategy == "ddp" or config.gpus == 1:
        buckets = trained if config.gpus > 1 else 0
        state: dict[str, float] = {
            "weights": parameters,
            "gradients": trained,
            "moments": moments,
            "communication": buckets,
        }
        return state | activations
    shards, unsplit = config.gpus, FLOAT * costs.unsplit
    loose = costs.total.parameters - costs.unsplit - sum(costs.blocks)
    state = {
        "weights": (parameters - unsplit) / shards + unsplit,
        "gradients": trained / (shards if config.parallel.accumulate == 1 else 1),
        "moments": moments / shards,
        "communication": FLOAT * (loose + 3 * max(costs.blocks, default=0)),
    }
    return state | activations


def _measure(config: PlanConfig) -> Gpu:
    check_device(config.device)
    device = torch.device(config.device)
    rate = matmul_ceiling(device, torch.bfloat16 if config.precision == "bf16" else torch.float32)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return Gpu(name=properties.name, memory=properties.total_memory, peak={config.precision: rate})
    return Gpu(name=f"this machine's {device.type}", memory=float("inf"), peak={config.precision: rate})


def _describe_model(costs: Costs) -> str:
    lines = [f"{'':32}{'parameters':>12}{'trained':>12}{'forward, per sample':>22}"]
    for name, part in (costs.parts | {"model": costs.total}).items():
        counts = f"{part.parameters / 1e6:10.1f} M{part.trained / 1e6:10.1f} M"
        lines.append(f"{name:32}{counts}{part.flops / 1e9:15.2f} GFLOP")
    step = f"forward and backward: {costs.step_flops / 1e9:.2f} GFLOP per sample"
    if costs.recomputed_flops:
        step += f"; recomputing blocks adds {costs.recomputed_flops / 1e9:.2f}"
    return "\n".join([*lines, step])


def _describe_memory(costs: Costs, config: PlanConfig, gpu: Gpu) -> str:
    strategies = {"ddp": "DDP", "fsdp": "FSDP2"} if config.gpus > 1 else {"ddp": "one GPU"}
    whole = {strategy: memory(costs, config, strategy=strategy, recompute=False) for strategy in strategies}
    lines = [f"GiB per GPU, {config.samples:6} samples each{'':4}" + "".join(f"{n:>12}" for n in strategies.values())]
    lines += [f"  {name:34}" + "".join(f"{rows[name] / GIB:12.2f}" for rows in whole.values()) for name in whole["ddp"]]
    lines.append(f"{'together':36}" + "".join(f"{sum(rows.values()) / GIB:12.2f}" for rows in whole.values()))
    if costs.recomputed_flops:
        totals = [sum(memory(costs, config, strategy=name, recompute=True).values()) for name in strategies]
        lines.append(f"{'together, blocks recomputed':36}" + "".join(f"{total / GIB:12.2f}" for total in totals))
    return "\n".join([*lines, _advise(costs, config, gpu)])


def _advise(costs: Costs, config: PlanConfig, gpu: Gpu) -> str:
    """Name the first setting that fits, the fastest ones first."""
    room = SPARE * gpu.memory
    for recompute in (False, True) if costs.recomputed_flops else (False,):
        for strategy in ("ddp", "fsdp") if config.gpus > 1 else ("ddp",):
            if sum(memory(costs, config, strategy=strategy, recompute=recompute).values()) <= room:
                words = f"parallel.strategy={strategy} parallel.checkpoint_activations={str(recompute).lower()}"
                return f"fits {gpu.name}: {words}"
    return f"does not fit {gpu.name} ({room / GIB:.0f} GiB for tensors): more GPUs, or a larger parallel.accumulate"


def _describe_time(costs: Costs, config: PlanConfig, gpu: Gpu) -> str:
    peak = gpu.peak[config.precision]
    total = float(costs.step_flops) * config.batch_size * config.steps
    hours = total / (config.gpus * peak * config.utilisation) / 3600
    rate = config.batch_size * config.steps / hours / 3600
    return (
        f"{total:.3g} FLOP at {config.utilisation:.0%} of {config.gpus} x {peak / 1e12:.4g} TFLOP/s: {hours:.3g} hours "
        f"({hours * config.gpus:.3g} GPU hours), {rate:.4g} samples/s"
    )
