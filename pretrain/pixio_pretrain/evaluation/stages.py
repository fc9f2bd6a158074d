"""DPT on a convolutional network: its last four stages are the pyramid that a transformer's taps are made into."""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from pixio_robot.encoder import Encoder
from pixio_robot.errors import SettingError
from pixio_robot.geometry.heads import DPT_PRESETS, LEVELS, DPTHead
from pixio_robot.tokens import Tokens


def stage_widths(encoder: Encoder) -> list[int] | None:
    """Tell the width of each of an encoder's blocks, or None if all of them have the same grid, as transformers do."""
    image = torch.zeros(1, 3, encoder.spec.image_size, encoder.spec.image_size)
    tokens = encoder.intermediate(image, blocks=range(encoder.spec.depth))
    return None if len({one.grid for one in tokens}) == 1 else [one.width for one in tokens]


def stages_of(widths: Sequence[int]) -> list[int]:
    """Say which blocks are the pyramid: the last four, counted from 0.

    Raises:
        SettingError: There are fewer.
    """
    if len(widths) < LEVELS:
        raise SettingError(
            f"task.head=dpt wants {LEVELS} stages, and this encoder has {len(widths)}: task.head=linear."
        )
    return list(range(len(widths) - LEVELS, len(widths)))


class StagesDPTHead(DPTHead):
    """DPT (arXiv 2103.13413, section 3) whose levels are maps of a network's own scales, each of its own width.

    Args:
        widths: Of the four maps, finest first.
        out_channels: Numbers per pixel.
        preset: A key of ``DPT_PRESETS``.
    """

    def __init__(self, widths: Sequence[int], out_channels: int, *, preset: str) -> None:
        super().__init__(widths[-1], LEVELS, out_channels, preset=preset, readout="none")
        channels = DPT_PRESETS[preset].channels
        self.project = nn.ModuleList(nn.Conv2d(width, c, 1) for width, c in zip(widths, channels, strict=True))
        self.rescale = nn.ModuleList(nn.Identity() for _ in channels)

    def maps(self, tokens: Sequence[Tokens], extra: Tensor | None) -> list[Tensor]:
        """Lay tokens out as maps [b channels rows columns], one per level."""
        del extra
        return [rearrange(one.patches, "b (h w) d -> b d h w", h=one.grid[0]) for one in tokens]
