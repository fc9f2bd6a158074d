"""What an encoder is opened from, and what anything learnt has to beat: random weights, bare pixels, nothing."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from pixio_pretrain.evaluation.chance import seeded
from pixio_pretrain.objectives.backbones import RESNET_SIZE, RESNETS, ResNetFeatures
from pixio_robot.checkpoints import load_encoder
from pixio_robot.encoder import ENCODERS, Encoder, EncoderSpec, create_encoder
from pixio_robot.errors import SettingError, UnknownNameError
from pixio_robot.images import PixelStatistics
from pixio_robot.nn import Backbone
from pixio_robot.tokens import Tokens

RANDOM = "random:"

PIXELS_PATCH, PIXELS_SIDE = 8, 128
THUMBNAIL_CELL = 4
"""Pixels of the side of a cell of ``PixelBackbone.thumbnail``: 32 x 32 of them, as many numbers as the 4 x 4 grid of
192 features that positions are read from."""


class _Untaught(Backbone):
    """A backbone without weights; its one number tells type and device."""

    statistics = PixelStatistics((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def initialize(self, generator: torch.Generator | None = None) -> None:
        """There is nothing to draw."""
        del generator


class PixelBackbone(_Untaught):
    """The image itself: each patch token holds the colours of its pixels, in [0, 1]."""

    def tokens_after(self, images: Tensor, blocks: Sequence[int], *, norm: bool) -> list[Tokens]:
        """Cut images into patches; see ``Backbone``."""
        del norm
        p = PIXELS_PATCH
        patches = rearrange(images, "b c (h p) (w q) -> b (h w) (p q c)", p=p, q=p)
        grid = (images.shape[2] // p, images.shape[3] // p)
        return [Tokens(patches[:, :0], patches, grid) for _ in blocks]

    @staticmethod
    def thumbnail(patches: Tensor) -> Tensor:
        """Reduce patches [b n d] to a small image [b f], since their mean over a grid would say nothing of places."""
        cells, c = PIXELS_PATCH // THUMBNAIL_CELL, THUMBNAIL_CELL
        parts = rearrange(patches, "b n (i p j q c) -> b n i j c p q", i=cells, j=cells, p=c, q=c, c=3)
        return parts.mean(dim=(-2, -1)).flatten(1)


class ConstantBackbone(_Untaught):
    """Eyes shut: one token, which is 0."""

    def tokens_after(self, images: Tensor, blocks: Sequence[int], *, norm: bool) -> list[Tokens]:
        """Say nothing of images; see ``Backbone``."""
        del norm
        nothing = images.new_zeros(len(images), 1, 1)
        return [Tokens(nothing[:, :0], nothing, (1, 1)) for _ in blocks]


def _pixels() -> Encoder:
    width = 3 * PIXELS_PATCH**2
    sizes: dict[str, Any] = {"depth": 1, "heads": 1, "class_tokens": 0}
    spec = EncoderSpec(family="pixels", width=width, patch_size=PIXELS_PATCH, image_size=PIXELS_SIDE, **sizes)
    return Encoder(spec, PixelBackbone(), provenance={"name": "pixels", "weights": "none"})


def _constant() -> Encoder:
    spec = EncoderSpec(family="constant", width=1, depth=1, heads=1, patch_size=32, image_size=32, class_tokens=0)
    return Encoder(spec, ConstantBackbone(), provenance={"name": "constant", "weights": "none"})


UNTAUGHT: dict[str, Callable[[], Encoder]] = {"pixels": _pixels, "constant": _constant}
"""Encoders without weights, by name."""


def open_encoder(name: str, *, seed: int, device: str) -> Encoder:
    """Open what an evaluation is to measure.

    Args:
        name: What ``load_encoder`` reads; "random:NAME" for weights of this seed in a row of ``ENCODERS``
            ("random:NAME@SIDE" where it is to see SIDE pixels) or in a ResNet ("random:resnet18"); "pixels" or
            "constant" (see ``UNTAUGHT``).
        seed: Of random weights.
        device: Where it computes.

    Raises:
        UnknownNameError: If there is no such network.
        CheckpointError: If a folder holds no encoder.
        SettingError: If SIDE is no number of pixels that the patches divide.
    """
    if name in UNTAUGHT:
        return UNTAUGHT[name]().to(device)
    if not name.startswith(RANDOM):
        return load_encoder(name, device=device)
    size, at, side = name.removeprefix(RANDOM).partition("@")
    if at and not side.isdecimal():
        raise SettingError(f"{name!r}: after the @ stands a size in pixels, such as {RANDOM}{size}@128.")
    if size in ENCODERS:
        return create_encoder(size, seed=seed, **({"image_size": int(side)} if at else {})).to(device)
    if size not in RESNETS:
        raise UnknownNameError("network to draw at random", size, [*ENCODERS, *RESNETS])
    with seeded(seed):
        return ResNetFeatures(size, RESNET_SIZE).encoder(f"{size}, random, seed {seed}").to(device)
