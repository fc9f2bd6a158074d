"""How fast a run is, and how fast it could be."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from pixio_pretrain.data.samples import Batch

MEASURE_S = 0.2
SIDES = {"cpu": 1024, "cuda": 8192}


class Meter:
    """Counts samples and seconds of training, and says how fast it was since it was last asked.

    Args:
        batch_size: Samples per step, of all processes.
        flops: Floating-point operations per sample.
        ceiling: Floating-point operations per second that all devices together can do at best.
    """

    def __init__(self, *, batch_size: int, flops: float, ceiling: float) -> None:
        self._batch_size = batch_size
        self._share = flops / ceiling
        self._steps, self._seconds = 0, 0.0

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Count the step inside."""
        began = time.perf_counter()
        yield
        self._steps, self._seconds = self._steps + 1, self._seconds + time.perf_counter() - began

    def read(self) -> dict[str, float]:
        """Give samples per second, and the share of the ceiling that they took."""
        rate = self._steps * self._batch_size / self._seconds
        self._steps, self._seconds = 0, 0.0
        return {"images_per_s": round(rate, 1), "utilisation": round(rate * self._share, 4)}


def count_flops(model: nn.Module, batch: Batch) -> float:
    """Count the floating-point operations of training on one sample: matrix products, convolutions, attention.

    Forward and backward run on tensors without data, so this costs no memory and leaves the model as it is.
    Recomputed activations do not count: they are a price, not progress.

    Args:
        model: An objective, before it is spread over processes.
        batch: Any batch of its samples.
    """
    named = [*model.named_parameters(), *model.named_buffers()]
    state = {name: torch.empty_like(old, device="meta").requires_grad_(old.requires_grad) for name, old in named}
    shapes = {key: torch.empty_like(value, device="meta") for key, value in batch.items()}
    with FlopCounterMode(display=False) as counter:
        loss = functional_call(model, state, (), shapes).loss
        torch.autograd.grad(loss, [value for value in state.values() if value.requires_grad], allow_unused=True)
    return counter.get_total_flops() / len(batch["images"])


def matmul_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the floating-point operations per second of a large square matrix product, the best of a few."""
    side = SIDES.get(device.type, 1024)
    matrix = torch.ones(side, side, device=device, dtype=dtype)
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < MEASURE_S:
        start = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best
