"""Eyes that say where things are: keypoints, learnt from the task's demonstrations on frozen descriptors.

``arms.NAME=keypoints:128@ENCODER``, where ENCODER is what ``load_encoder`` reads, or "random": descriptors with fresh
weights, one draw for each training seed, which say what training them is worth.
"""

import torch

from pixio_robot import Encoder, load_encoder
from pixio_robot.encoder import DESCRIPTORS
from pixio_robot.errors import SettingError

SCHEME = "keypoints:"
"""Before the number of keypoints and their descriptors, where otherwise an encoder is named."""
RANDOM = "random"
"""In place of an encoder: fresh weights."""


def keypoints_named(source: str) -> tuple[int, str] | None:
    """How many keypoints of which encoder ``keypoints:K@ENCODER`` names; None for any other source.

    Raises:
        SettingError: No number from 1 on, or no encoder.
    """
    if not source.startswith(SCHEME):
        return None
    count, _, encoder = source.removeprefix(SCHEME).partition("@")
    if not count.isdecimal() or int(count) < 1 or not encoder:
        raise SettingError(
            f"{source!r}: after {SCHEME} stands how many keypoints, and after @ whose, such as "
            f"{SCHEME}128@shipped:descriptors."
        )
    return int(count), encoder


def open_descriptors(source: str, seed: int) -> Encoder:
    """Load descriptors, or draw them with fresh weights.

    Raises:
        PixioRobotError: Whatever ``load_encoder`` raises.
    """
    if source != RANDOM:
        return load_encoder(source)
    encoder = Encoder(DESCRIPTORS, provenance={"name": "untrained descriptors", "weights": f"random, seed {seed}"})
    encoder.backbone.initialize(torch.Generator().manual_seed(seed))
    return encoder
