"""What a model costs, counted on tensors without contents: parameters, floating-point operations, bytes kept.

A multiplication with its addition counts as two operations, as everywhere in ``torch.utils.flop_counter``; what is not
a matrix product, a convolution or attention is not counted.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, UntypedStorage, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from pixio_pretrain.distributed import recomputable_blocks, repeated_blocks
from pixio_pretrain.objectives import Objective, ObjectiveConfig
from pixio_pretrain.objectives.backbones import FeatureNet
from pixio_pretrain.objectives.distill import Distillation, DistillConfig
from pixio_pretrain.speed import count_flops
from pixio_robot import load_encoder
from pixio_robot.encoder import ENCODERS, Encoder
from pixio_robot.nn import Backbone

SAMPLES = 2


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a model.

    Attributes:
        parameters: All of them.
        trained: Those that take a gradient.
        flops: Of the forward pass, per sample.
    """

    parameters: int
    trained: int
    flops: int


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Bytes that the forward pass keeps for the backward pass, on a GPU, with fused attention.

    Attributes:
        whole: Per sample.
        recomputed: Per sample, if transformer blocks keep their input only and run again, one at a time.
        weights: Half-precision copies of the weights, which autocast makes; whatever the batch.
    """

    whole: int
    recomputed: int
    weights: int


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What one objective costs. A sample is an image, or what takes its place, such as a pair of views.

    Attributes:
        parts: Encoders (by their place in the model), frozen networks, and the rest.
        step_flops: Per sample, forward and backward.
        recomputed_flops: Per sample: what recomputing blocks adds.
        blocks: Parameters of each layer that repeats, whether trained or not.
        unsplit: Parameters that every process holds, however the model is spread: a teacher's.
        activations: See ``Activations``.
    """

    parts: dict[str, Part]
    step_flops: int
    recomputed_flops: int
    blocks: list[int]
    unsplit: int
    activations: Activations

    @property
    def total(self) -> Part:
        """All parts together."""
        sums = {name: sum(getattr(part, name) for part in self.parts.values()) for name in Part.__annotations__}
        return Part(**sums)


def count_costs(config: ObjectiveConfig, *, precision: str) -> Costs:
    """Count what an objective costs; nothing of its size is allocated.

    Args:
        config: All settings of the objective.
        precision: "bf16" (autocast) or "fp32"; decides on the bytes only.

    Raises:
        UnknownNameError: If there is no such encoder.
        SettingError: If the settings do not fit together.
    """
    build = _builder(config)
    with torch.device("meta"):
        model = build()
    batch = _batch(model, SAMPLES, "meta")
    forward = _count_forward(lambda: model(**batch))
    trained = [name for name, block in recomputable_blocks(model).items() if _trained(block)]
    parts = _parts(model, forward)
    if isinstance(model, Distillation):
        flops = _count_forward(lambda: model.teach(batch["images"]))["Global"]
        parts["frozen (teacher)"] = Part(parameters=_parameters(model.teacher), trained=0, flops=flops)
        parts["decoder, heads"] = replace(parts["decoder, heads"], flops=parts["decoder, heads"].flops - flops)
    return Costs(
        parts=parts,
        step_flops=round(count_flops(model, batch)),
        recomputed_flops=sum(forward.get(f"{type(model).__name__}.{name}", 0) for name in trained),
        blocks=[_parameters(block) for block in repeated_blocks(model).values()],
        unsplit=sum(part.parameters for part in parts.values()) - _parameters(model),
        activations=_count_activations(build, precision),
    )


def _builder(config: ObjectiveConfig) -> Callable[[], Objective]:
    """What builds the objective; a teacher is not read if its name says how large it is."""
    if not isinstance(config, DistillConfig):
        return config.build
    config.check()
    row, local = config.teacher.rpartition("/")[2].replace("-", "_"), Path(config.teacher).expanduser().exists()
    spec = ENCODERS[row] if row in ENCODERS and not local else load_encoder(config.teacher).spec
    return lambda: config.build_under(Encoder(spec))


def _count_forward(run: Callable[[], object]) -> dict[str, int]:
    """Operations per sample, by module."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return {name: sum(counts.values()) // SAMPLES for name, counts in counter.get_flop_counts().items()}


def _batch(model: Objective, samples: int, device: str) -> dict[str, Tensor]:
    """A batch of the right shapes and types."""
    side = model.image_size
    sample = model.samples(crop_scale=1.0)(Image.new("RGB", (side, side)), np.random.default_rng(0))
    types = {name: torch.from_numpy(np.empty(0, array.dtype)).dtype for name, array in sample.items()}
    return {
        name: torch.zeros(samples, *array.shape, dtype=types[name], device=device) for name, array in sample.items()
    }


def _parts(model: Objective, forward: dict[str, int]) -> dict[str, Part]:
    root = type(model).__name__
    networks = _outermost(model, lambda module: isinstance(module, (Backbone, FeatureNet)))
    encoders = [name for name, network in networks.items() if _trained(network)]
    parts = {}
    for name, network in networks.items():
        prefix = f"{root}.{name}"
        below = [key for key in forward if key == prefix or key.startswith(f"{prefix}.")]
        tops = [key for key in below if not any(key.startswith(f"{other}.") for other in below)]
        title = "frozen" if name not in encoders else "encoder"
        parts[f"{title} ({name})"] = Part(
            parameters=_parameters(network), trained=_trained(network), flops=sum(forward[key] for key in tops)
        )
    parts["decoder, heads"] = Part(
        parameters=_parameters(model) - sum(part.parameters for part in parts.values()),
        trained=_trained(model) - sum(part.trained for part in parts.values()),
        flops=forward[root] - sum(part.flops for part in parts.values()),
    )
    return parts


def _outermost(model: nn.Module, wanted: Callable[[nn.Module], bool]) -> dict[str, nn.Module]:
    """Modules of some kind that lie in no other of the kind, by name."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if wanted(module) and not any(name.startswith(f"{other}.") for other in found):
            found[name] = module
    return found


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _trained(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


class _FusedAttention(TorchFunctionMode):
    """Let attention keep what GPU kernels keep; on tensors without contents it would keep the attention weights."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_flash_attention(*args, **(kwargs or {}))[0]
        return func(*args, **(kwargs or {}))


def _count_activations(build: Callable[[], Objective], precision: str) -> Activations:
    """Run the forward pass with two sizes of batch, so that what grows with it can be told from what does not."""
    with FakeTensorMode():  # knows the rules of autocast on GPUs, and needs none
        with torch.device("cuda"):
            model = build()
        small, large = (_count_saved(model, samples, precision) for samples in (SAMPLES, 2 * SAMPLES))
    whole, recomputed = ((after - before) // SAMPLES for before, after in zip(small, large, strict=True))
    return Activations(whole=whole, recomputed=recomputed, weights=small[0] - SAMPLES * whole)


def _count_saved(model: Objective, samples: int, precision: str) -> tuple[int, int]:
    """Bytes that the forward pass of a batch keeps, as it is and with recomputed blocks."""
    kept = _Kept(model)
    with _FusedAttention(), _autocast(precision), saved_tensors_hooks(kept.add, lambda tensor: tensor):
        model(**_batch(model, samples, "cuda"))
    kept.close()
    outside = kept.inside.pop("", 0)
    recomputed = outside + sum(kept.inputs) + max(kept.inside.values(), default=0)
    return outside + sum(kept.inside.values()), recomputed


class _Kept:
    """What autograd keeps, by the recomputable block in which it does so.

    Attributes:
        inside: Bytes, by block; "" is outside of all.
        inputs: Bytes that went into each block.
    """

    def __init__(self, model: nn.Module) -> None:
        self.inside: defaultdict[str, int] = defaultdict(int)
        self.inputs: list[int] = []
        self._current = ""
        self._owned = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        self._seen: dict[int, UntypedStorage] = {}  # held, so that no other takes its place
        self._hooks = []
        for name, block in recomputable_blocks(model).items():
            self._hooks.append(block.register_forward_pre_hook(partial(self._enter, name)))
            self._hooks.append(block.register_forward_hook(self._leave))

    def add(self, tensor: Tensor) -> Tensor:
        """Count a tensor that autograd is about to keep, unless it is a weight or kept already."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._owned and storage._cdata not in self._seen:
            self._seen[storage._cdata] = storage
            self.inside[self._current] += storage.nbytes()
        return tensor

    def close(self) -> None:
        """Leave the model as it was."""
        for hook in self._hooks:
            hook.remove()

    def _enter(self, name: str, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._current = name
        self.inputs.append(args[0].untyped_storage().nbytes())

    def _leave(self, *_: object) -> None:
        self._current = ""


@contextmanager
def _autocast(precision: str) -> Iterator[None]:
    """What ``torch.autocast("cuda")`` does, without asking for a GPU."""
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", precision == "bf16")
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.clear_autocast_cache()
