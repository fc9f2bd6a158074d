"""AdamW as masked autoencoders use it: no decay for biases and norms, linear warm-up, cosine to zero."""

import math

import torch
from torch import nn

from pixio_pretrain.config import OptimizerConfig


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Build AdamW with two groups; the learning rate is set at every step.

    As in Pixio's recipe, class tokens, mask token and positions are decayed; tensors of one dimension are not.
    """
    groups = {True: [], False: []}
    for parameter in model.parameters():
        groups[parameter.ndim > 1].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": config.weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=0.0,
        betas=config.betas,
        fused=True,
    )


def learning_rate(step: int, *, steps: int, warmup: int, peak: float) -> float:
    """Rate of one step, counted from 0: linear from 0 to ``peak``, then along a cosine to 0."""
    if step < warmup:
        return peak * step / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
