"""Eyes without any learning of shapes: where the colours of the demonstrations are. ``arms.NAME=colors:64``.

A frozen encoder that knows one task's cameras, things and lights, and nothing else. What it solves asks for places, and
not for an encoder that has seen much; under a shift it shows what having seen much is worth. ``load_encoder`` reads its
folder where this module is imported: such a policy acts in the benchmark alone.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from pixio_pretrain.probe.palette import Palette
from pixio_robot import Encoder
from pixio_robot.encoder import EncoderSpec
from pixio_robot.errors import SettingError
from pixio_robot.foreign import READERS, ForeignBackbone, wrap_model
from pixio_robot.images import PixelStatistics
from pixio_robot.tokens import Tokens

SCHEME = "colors:"
"""Before the number of colours, where otherwise an encoder is named."""
PICTURES = 256
"""Of each camera, evenly spread over the demonstrations, that colours are learnt from."""


class PaletteConfig(PreTrainedConfig):
    """Sizes of a ``PaletteModel``: cameras, colours of each, pixels of a side."""

    model_type = "pixio_palette"

    def __init__(self, cameras: int = 1, colors: int = 64, side: int = 128, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cameras, self.colors, self.side = cameras, colors, side


class PaletteModel(PreTrainedModel):
    """One ``Palette`` for each camera: backgrounds [v p 3] and colours [v k 3]."""

    config_class = PaletteConfig

    def __init__(self, config: PaletteConfig) -> None:
        super().__init__(config)
        self.backgrounds = nn.Parameter(torch.zeros(config.cameras, config.side**2, 3), requires_grad=False)
        self.colors = nn.Parameter(torch.zeros(config.cameras, config.colors, 3), requires_grad=False)
        self.post_init()


class PaletteBackbone(ForeignBackbone):
    """A palette as an encoder: one patch, the whole picture. Pictures are of the camera whose background is nearest."""

    statistics = PixelStatistics((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

    @property
    def spec(self) -> EncoderSpec:
        """The sizes: three numbers for every colour."""
        config = self.model.config
        sizes = {"patch_size": config.side, "image_size": config.side, "class_tokens": 0}
        return EncoderSpec(family=config.model_type, width=3 * config.colors, depth=1, heads=1, **sizes)

    def tokens_after(self, images: Tensor, blocks: Sequence[int], *, norm: bool) -> list[Tokens]:
        """Find the colours in pictures [b 3 h w]; see ``Backbone``."""
        del norm
        model, pixels = self.model, rearrange(images.float(), "b c h w -> b (h w) c")
        if pixels.shape[1:] != model.backgrounds.shape[1:]:
            raise SettingError(f"This palette reads pictures of {model.config.side} x {model.config.side} pixels.")
        backgrounds, colors = model.backgrounds.float().cpu().numpy(), model.colors.float().cpu().numpy()
        palettes = [Palette(*pair) for pair in zip(backgrounds, colors, strict=True)]
        found = []
        for one in (255 * pixels).round().to(torch.uint8).cpu().numpy():
            nearest = np.abs(one / np.float32(255) - backgrounds).mean(axis=(1, 2)).argmin()
            found.append(palettes[nearest](one[None]))
        patches = torch.stack(found).to(images)  # b 1 3k
        return [Tokens(patches[:, :0], patches, (1, 1)) for _ in blocks]


def learn_palette(pictures: Sequence[Tensor], count: int) -> Encoder:
    """Learn the colours of a task's demonstrations.

    Args:
        pictures: Of each camera, uint8 [n 3 side side].
        count: How many colours.
    """
    palettes = [Palette.learn(rearrange(one, "n c h w -> n (h w) c").numpy(), count) for one in pictures]
    config = PaletteConfig(cameras=len(palettes), colors=count, side=pictures[0].shape[-1])
    model = PaletteModel(config)
    for number, palette in enumerate(palettes):
        model.backgrounds.data[number] = torch.from_numpy(palette.background)
        model.colors.data[number] = torch.from_numpy(palette.colors)
    return wrap_model(model, provenance={"name": f"{count} colours", "weights": "k-means over the demonstrations"})


def colors_named(source: str) -> int | None:
    """How many colours ``colors:K`` names; None for any other encoder.

    Raises:
        SettingError: No number, or none from 1 on.
    """
    if not source.startswith(SCHEME):
        return None
    text = source.removeprefix(SCHEME)
    if not text.isdecimal() or int(text) < 1:
        raise SettingError(f"{source!r}: after {SCHEME} stands how many colours, such as {SCHEME}64.")
    return int(text)


AutoConfig.register(PaletteConfig.model_type, PaletteConfig, exist_ok=True)
AutoModel.register(PaletteConfig, PaletteModel, exist_ok=True)
READERS[PaletteConfig.model_type] = PaletteBackbone
