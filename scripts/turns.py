"""Timing of things that take turns, so that whatever else the machine does hits all of them."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

Clock = Callable[[], float]


def quiet_clock(device: str) -> Clock:
    """CPU seconds of one thread do not count what else runs; a GPU or several threads need the time on the wall."""
    return time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def timed(task: Callable[[], object], *, device: str = "cpu", clock: Clock = time.perf_counter) -> float:
    """Give the seconds that a task takes by a clock, the device's queue included."""
    began = clock()
    task()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return clock() - began


def take_turns(
    tasks: Mapping[str, Callable[[], float]], rounds: int, *, warm_up: bool = True
) -> dict[str, list[float]]:
    """Give what each task gave in every round; all of them take their turn before the next round.

    Args:
        tasks: What gives a figure, by name.
        rounds: How often.
        warm_up: Whether there is a round before, whose figures are thrown away.
    """
    figures: dict[str, list[float]] = {name: [] for name in tasks}
    for number in range(rounds + warm_up):
        for name, task in tasks.items():
            figure = task()
            if number >= warm_up:
                figures[name].append(figure)
    return figures


def ratio(values: Sequence[float], base: Sequence[float]) -> str:
    """How many times as large some figures are as others of the same rounds: the median, and the range."""
    found = [value / other for value, other in zip(values, base, strict=True)]
    return f"{statistics.median(found):.3g}x ({min(found):.3g} to {max(found):.3g})"
