"""Chance that follows from a seed, and leaves the rest of a program's chance alone."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let what PyTorch draws on the CPU follow from a seed; afterwards its generator goes on as if nothing had been."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would tell GPUs, too, each time
        yield
