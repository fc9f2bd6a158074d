"""Adam in one kernel: the fastest form of LeRobot's optimizer presets, whose state stays readable to LeRobot."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def fuse(optimizer: torch.optim.Adam) -> torch.optim.Adam:
    """Let the update of all weights be one kernel instead of a dozen operations on each tensor.

    LeRobot's presets have no such setting, and PyTorch's own choice on a CPU is the slowest of its three forms.
    """
    for group in optimizer.param_groups:
        group.update(fused=True, foreach=False)
    for weight, state in optimizer.state.items():
        state["step"] = state["step"].to(weight.device)  # where the kernel wants it
    return optimizer


@contextmanager
def as_in_presets(optimizer: torch.optim.Adam) -> Iterator[None]:
    """Take back what ``fuse`` set: LeRobot reads a state only into an optimizer with the same kinds of settings."""
    for group in optimizer.param_groups:
        group.update(fused=None, foreach=None)
    try:
        yield
    finally:
        fuse(optimizer)
