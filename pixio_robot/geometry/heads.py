"""Dense heads on an encoder's tokens: one number, or several, for every pixel.

Both read what the frozen encoder says after some of its blocks, so any number of heads shares one pass. The shapes are
those of Pixio's evaluation of depth and segmentation (arXiv 2512.15715, section 4): class tokens averaged and put
beside every patch, a linear head, and the head of DPT (arXiv 2103.13413, section 3) in three sizes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from pixio_robot.encoder import Encoder
from pixio_robot.errors import SettingError, UnknownNameError
from pixio_robot.images import normalize
from pixio_robot.nn import no_autocast
from pixio_robot.tokens import Tokens

Readout = Literal["mean", "none"]
"""What becomes of the class tokens: their mean beside every patch, or nothing. An encoder without any lends the mean
of its patches instead, so that a head's width does not depend on the encoder's family."""

LEVELS = 4
"""Scales of DPT's pyramid: 4, 2, 1 and 1/2 times the grid of patches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DPTPreset:
    """Sizes of a DPT head.

    Attributes:
        features: Channels of the fused maps.
        channels: Channels of the four levels, finest first.
    """

    features: int
    channels: tuple[int, int, int, int]


DPT_PRESETS = {
    "tiny": DPTPreset(features=64, channels=(48, 96, 192, 384)),
    "base": DPTPreset(features=128, channels=(96, 192, 384, 768)),
    "paper": DPTPreset(features=256, channels=(256, 512, 1024, 1024)),
}
"""At 256 x 256 pixels on a ViT-B (47 GFLOP): 4, 16 and 61 GFLOP."""


class _Head(nn.Module):
    """What both heads do with tokens.

    Attributes:
        taps: How many blocks' tokens it reads.
        channels: Channels of one tap's map, extra ones included.
    """

    def __init__(self, width: int, taps: int, *, readout: Readout, extra: int) -> None:
        super().__init__()
        if readout not in get_args(Readout):
            raise UnknownNameError("readout", readout, get_args(Readout))
        self.taps, self.readout, self.extra = taps, readout, extra
        self.channels = width * (2 if readout == "mean" else 1) + extra

    def maps(self, tokens: Sequence[Tokens], extra: Tensor | None) -> list[Tensor]:
        """Lay tokens out as maps [b channels rows columns], one per tap."""
        if len(tokens) != self.taps:
            raise SettingError(f"This head reads {self.taps} taps, not {len(tokens)}: see taps_of().")
        return [self._map(one, extra) for one in tokens]

    def _map(self, tokens: Tokens, extra: Tensor | None) -> Tensor:
        maps = rearrange(tokens.patches, "b (h w) d -> b d h w", h=tokens.grid[0])
        if self.readout == "mean":
            maps = torch.cat([maps, tokens.summary[:, :, None, None].expand_as(maps)], dim=1)
        if self.extra:
            if extra is None or extra.shape[1:] != (self.extra, *tokens.grid):
                given = None if extra is None else list(extra.shape)
                raise SettingError(f"This head wants extra channels [b {self.extra} {tokens.grid}], not {given}.")
            maps = torch.cat([maps, extra.to(maps.dtype)], dim=1)
        if maps.shape[1] != self.channels:
            raise SettingError(f"This head reads maps of {self.channels} channels, not {maps.shape[1]}.")
        return maps


def like_weight(tokens: Sequence[Tokens], weight: Tensor) -> list[Tokens]:
    """Bring tokens to the type and device of a weight that reads them: an encoder may compute in half precision."""
    return [one.map(lambda part: part.to(weight)) for one in tokens]


class LinearHead(_Head):
    """Batch norm, then one linear map shared by all patches, then bilinear interpolation with aligned corners.

    Args:
        width: Token width d.
        taps: How many blocks' tokens it reads, side by side.
        out_channels: Numbers per pixel.
        readout: What becomes of the class tokens.
        extra: Channels that the caller adds to every patch, such as its ray.
    """

    def __init__(
        self, width: int, taps: int = 1, out_channels: int = 1, *, readout: Readout = "mean", extra: int = 0
    ) -> None:
        super().__init__(width, taps, readout=readout, extra=extra)
        self.norm = nn.BatchNorm2d(taps * self.channels)
        self.out = nn.Conv2d(taps * self.channels, out_channels, 1)
        nn.init.normal_(self.out.weight, std=0.01)
        nn.init.zeros_(self.out.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, tokens: Sequence[Tokens], size: tuple[int, int], extra: Tensor | None = None) -> Tensor:
        """Read tokens out.

        Args:
            tokens: One ``Tokens`` [b ...] per tap, as ``Encoder.intermediate(images, blocks=taps_of(...))`` gives.
            size: (height, width) of the answer in pixels; any.
            extra: [b extra rows columns] where the head was built for it.

        Returns:
            float32 [b out_channels height width].

        Raises:
            SettingError: Tokens that this head was not built for.
        """
        return _finish(self.out, self.norm(torch.cat(self.maps(tokens, extra), dim=1)), size)


class DPTHead(_Head):
    """A pyramid of four scales, fused from the coarsest to the finest by residual convolutions.

    Args:
        width: Token width d.
        taps: 4 for a scale per tap; with 2 or 1, neighbouring scales share a tap.
        out_channels: Numbers per pixel.
        preset: A key of ``DPT_PRESETS``; "paper" has the sizes of Pixio's tables, "tiny" those that a robot can afford.
        readout: What becomes of the class tokens.
        extra: Channels that the caller adds to every patch, such as its ray.
        detail: Read the picture itself, too, at half and at a quarter of its size: tokens blur edges.
        fine: Channels that the caller adds at about a quarter of the picture's size, such as a plane sweep.

    Raises:
        UnknownNameError: No such preset.
        SettingError: A number of taps that does not divide 4.
    """

    def __init__(
        self,
        width: int,
        taps: int = 4,
        out_channels: int = 1,
        *,
        preset: str = "tiny",
        readout: Readout = "mean",
        extra: int = 0,
        detail: bool = False,
        fine: int = 0,
    ) -> None:
        super().__init__(width, taps, readout=readout, extra=extra)
        if preset not in DPT_PRESETS:
            raise UnknownNameError("DPT preset", preset, DPT_PRESETS)
        if taps not in (1, 2, LEVELS):
            raise SettingError(f"A DPT head has 1, 2 or {LEVELS} taps, not {taps}.")
        sizes = DPT_PRESETS[preset]
        c, f = sizes.channels, sizes.features
        self.project = nn.ModuleList(nn.Conv2d(self.channels, channels, 1) for channels in c)
        self.rescale = nn.ModuleList(
            [
                nn.ConvTranspose2d(c[0], c[0], 4, stride=4),
                nn.ConvTranspose2d(c[1], c[1], 2, stride=2),
                nn.Identity(),
                nn.Conv2d(c[3], c[3], 3, stride=2, padding=1),
            ]
        )
        self.narrow = nn.ModuleList(nn.Conv2d(channels, f, 3, padding=1, bias=False) for channels in c)
        self.fuse = nn.ModuleList(_Fusion(f, skip=level < LEVELS - 1) for level in range(LEVELS))
        self.smooth = nn.Conv2d(f, f, 3, padding=1)
        self.out = nn.Conv2d(f, out_channels, 1)
        self.detail = _Detail(f) if detail else None
        self.fine = nn.Conv2d(fine, f, 3, padding=1) if fine else None

    def forward(
        self,
        tokens: Sequence[Tokens],
        size: tuple[int, int],
        extra: Tensor | None = None,
        pixels: Tensor | None = None,
        fine: Tensor | None = None,
    ) -> Tensor:
        """Read tokens out; arguments, result and errors are those of ``LinearHead.forward``.

        ``pixels`` are the normalised images [b 3 height width], and ``fine`` further maps [b fine h w], where the head
        was built to read them.
        """
        if (pixels is None) != (self.detail is None):
            raise SettingError("This head reads the picture, too: pass it." if self.detail else "It reads tokens only.")
        if (fine is None) != (self.fine is None):
            raise SettingError("This head reads fine maps, too: pass them." if self.fine else "It reads no fine maps.")
        half, quarter = self.detail(pixels) if self.detail is not None else (None, None)
        maps = self.maps(tokens, extra)
        levels = []
        for level in range(LEVELS):
            projected = self.project[level](maps[level * self.taps // LEVELS])
            levels.append(self.narrow[level](self.rescale[level](projected)))
        fused: Tensor | None = None
        for level in reversed(range(LEVELS)):
            finest = level == 0
            h, w = levels[level].shape[-2:] if finest else levels[level - 1].shape[-2:]
            here = _add(levels[level], quarter) if finest else levels[level]
            if finest and self.fine is not None and fine is not None:
                here = _add(here, self.fine(fine))
            fused = self.fuse[level](fused, here, (2 * h, 2 * w) if finest else (h, w))
        assert fused is not None
        fused = _add(fused, half)
        return _finish(self.out, F.relu(self.smooth(fused)), size)


class _Detail(nn.Module):
    """What small convolutions see of the picture, at half and at a quarter of its size."""

    def __init__(self, features: int, width: int = 16) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.second = nn.Conv2d(width, features, 3, stride=2, padding=1)
        self.widen = nn.Conv2d(width, features, 1)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        seen = F.relu(self.first(pixels))
        return self.widen(seen), self.second(seen)


def picture(encoder: Encoder, images: Tensor | None, device: torch.device) -> Tensor:
    """Give images as a head with ``detail`` reads them: normalised, float32.

    Raises:
        SettingError: There are none.
    """
    if images is None:
        raise SettingError("This head reads the picture, too: pass the images.")
    return normalize(images.to(device), torch.float32, encoder.backbone.statistics)


def _add(maps: Tensor, detail: Tensor | None) -> Tensor:
    """Add detail, brought to the size of the maps."""
    if detail is None:
        return maps
    if detail.shape[-2:] != maps.shape[-2:]:
        detail = F.interpolate(detail, size=maps.shape[-2:], mode="bilinear", align_corners=False)
    return maps + detail.to(maps.dtype)


class _ResidualUnit(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class _Fusion(nn.Module):
    """Adds a level to what the coarser ones gave, and interpolates to the next one's size."""

    def __init__(self, features: int, *, skip: bool) -> None:
        super().__init__()
        self.skip = _ResidualUnit(features) if skip else None
        self.unit = _ResidualUnit(features)
        self.out = nn.Conv2d(features, features, 1)

    def forward(self, coarser: Tensor | None, level: Tensor, size: tuple[int, int]) -> Tensor:
        x = level if coarser is None or self.skip is None else coarser + self.skip(level)
        x = F.interpolate(self.unit(x), size=size, mode="bilinear", align_corners=True)
        return self.out(x)


def _finish(layer: nn.Conv2d, maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Apply the output layer and interpolate, in float32 whatever came before: bfloat16 is off by 4 mm at 1 m."""
    with no_autocast(maps.device):
        bias = None if layer.bias is None else layer.bias.float()
        out = F.conv2d(maps.float(), layer.weight.float(), bias)
        return F.interpolate(out, size=size, mode="bilinear", align_corners=True)
