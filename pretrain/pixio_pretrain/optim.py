"""Optimisers with the parameter groups of the recipes, and their schedule: linear warm-up, then a cosine."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pixio_robot.errors import SettingError, UnknownNameError


@dataclass(kw_only=True)
class OptimizerConfig:
    """An optimiser and its schedule; the defaults are those of Pixio's ImageNet recipe.

    Attributes:
        name: "adamw" (masked autoencoders, distillation) or "lars" (PixPro).
        base_lr: Learning rate per 256 images of batch.
        min_lr: Learning rate at the end.
        warmup: Steps over which the rate rises linearly to its peak; it then falls to ``min_lr`` along a cosine.
        warmup_from: Share of the peak at which the rise begins.
        weight_decay: Decay of matrices, tokens and positions; biases and norms have none.
        betas: Decay of AdamW's two moments; the first is the momentum of LARS.
    """

    name: str = "adamw"
    base_lr: float = 2.5e-5
    min_lr: float = 0.0
    warmup: int = 500
    warmup_from: float = 0.0
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise UnknownNameError("optimizer", self.name, OPTIMIZERS)
        if self.base_lr <= 0 or min(self.min_lr, self.warmup, self.weight_decay) < 0:
            raise SettingError(
                "optimizer: base_lr must be above 0; min_lr, warmup and weight_decay must not be below 0."
            )
        if not 0 <= self.warmup_from <= 1 or not all(0 <= beta < 1 for beta in self.betas):
            raise SettingError("optimizer: warmup_from must lie in [0, 1], both betas in [0, 1).")


class Lars(torch.optim.Optimizer):
    """Momentum SGD whose step is as long as the weights allow (arXiv 1708.03888, algorithm 1).

    The gradient of each tensor, weight decay added, is scaled to ``TRUST`` times the tensor's norm:

        rate = TRUST * |w| / (|g| + weight_decay * |w| + EPS)   (1 where |w| or |g| is 0)
        v <- momentum * v + rate * (g + weight_decay * w)
        w <- w - lr * v

    Groups with ``adapt`` false (biases and norms) take ``rate`` = 1. The learning rate stands outside of the momentum,
    as in ``torch.optim.SGD``, so that a change of rate acts at once.

    Args:
        params: Tensors, or groups of them.
        lr: Learning rate.
        momentum: Share of the last step that is kept.
        weight_decay: Decay added to the gradient.
    """

    TRUST = 1e-3
    EPS = 1e-8

    def __init__(self, params: Iterable[Any], *, lr: float, momentum: float = 0.9, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "adapt": True})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step."""
        del closure  # PyTorch's checkpoints name it, and give none
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._step_tensor(weight, weight.grad, group)

    def _step_tensor(self, weight: Tensor, gradient: Tensor, group: "Group") -> None:
        update = gradient + group["weight_decay"] * weight
        if group["adapt"]:
            length, slope = weight.norm(), gradient.norm()
            rate = self.TRUST * length / (slope + group["weight_decay"] * length + self.EPS)
            update = update * torch.where((length > 0) & (slope > 0), rate, 1.0)
        state = self.state[weight]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(weight)
        weight.sub_(group["lr"] * state["momentum"].mul_(group["momentum"]).add_(update))


Group = dict[str, Any]


def _adamw(decayed: Group, free: Group, config: OptimizerConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW([decayed, free], lr=0.0, betas=config.betas, fused=True)


def _lars(decayed: Group, free: Group, config: OptimizerConfig) -> torch.optim.Optimizer:
    return Lars([decayed, free | {"adapt": False}], lr=0.0, momentum=config.betas[0])


OPTIMIZERS: dict[str, Callable[[Group, Group, OptimizerConfig], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "lars": _lars,
}


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Build an optimiser of what takes a gradient, in two groups; the learning rate is set at every step.

    As in the recipes of MAE, Pixio and PixPro, tensors of one dimension and biases are not decayed (and not scaled by
    LARS); class tokens, mask tokens and positions are.
    """
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[parameter.ndim > 1 and not name.endswith(".bias")].append(parameter)
    decayed: Group = {"params": groups[True], "weight_decay": config.weight_decay}
    return OPTIMIZERS[config.name](decayed, {"params": groups[False], "weight_decay": 0.0}, config)


def learning_rate(
    step: int, *, steps: int, warmup: int, peak: float, warmup_from: float = 0.0, min_lr: float = 0.0
) -> float:
    """Rate of one step, from 0: linear from ``warmup_from * peak`` to ``peak``, then along a cosine to ``min_lr``."""
    if step < warmup:
        return peak * (warmup_from + (1 - warmup_from) * step / warmup)
    return min_lr + (peak - min_lr) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
