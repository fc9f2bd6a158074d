"""How arms are told on the page: a name and a colour each."""

from collections.abc import Mapping
from itertools import cycle
from typing import NamedTuple

from benchmark.settings import CONTROLS, Benchmark

COLORS = ("#1f6feb", "#a475f9", "#d4a72c", "#bf3989", "#0a7ea4", "#6e5494")
"""Of the encoders, in their order."""


class Look(NamedTuple):
    """What an arm is called, and the colour that it is drawn in."""

    label: str
    color: str


Looks = Mapping[str, Look]
"""Arm to its look."""


def find_looks(config: Benchmark) -> dict[str, Look]:
    """Give every arm its look, encoders first."""
    looks = {arm: Look(arm, color) for arm, color in zip(config.arms, cycle(COLORS), strict=False)}
    for name in config.controls:
        label, color = CONTROLS[name].label, CONTROLS[name].color
        frozen = name == "random" and config.train_encoder_of(name) == "frozen"
        looks[name] = Look(f"{label}, frozen" if frozen else label, color)
    return looks
