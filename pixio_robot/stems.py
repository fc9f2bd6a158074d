"""How images become patch tokens."""

from itertools import pairwise

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from pixio_robot.tokens import take


class PatchEmbed(nn.Module):
    """Cut images into patches and project each one linearly."""

    def __init__(self, width: int, patch_size: int, channels: int = 3) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch_size, stride=patch_size)

    def forward(self, images: Tensor, index: Tensor | None = None) -> tuple[Tensor, tuple[int, int]]:
        """Embed images [b 3 h w] into patches [b n d], row-major, and say how many (rows, columns) there are.

        With ``index`` [b k], into the patches at these places only, [b k d].
        """
        if index is None:
            x = self.proj(images)  # b d rows columns
            return x.flatten(2).transpose(1, 2), (x.shape[2], x.shape[3])
        p, q = self.proj.kernel_size
        patches = take(rearrange(images, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=q), index)
        embedded = F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)
        return embedded, (images.shape[2] // p, images.shape[3] // q)

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights: Xavier over whole patches; the bias as PyTorch does for a convolution."""
        nn.init.xavier_uniform_(self.proj.weight.flatten(1), generator=generator)
        if self.proj.bias is not None:
            bound = self.proj.weight[0].numel() ** -0.5
            nn.init.uniform_(self.proj.bias, -bound, bound, generator=generator)


class ConvEmbed(PatchEmbed):
    """Embed patches by small convolutions that each halve the picture (arXiv 2106.14881), so patches overlap.

    Args:
        width: Token width d.
        patch_size: A power of 2, from 4 upwards.
    """

    def __init__(self, width: int, patch_size: int) -> None:
        halvings = patch_size.bit_length() - 1
        super().__init__(width, 1, channels=width)
        channels = [3, *(max(16, width >> halvings - step) for step in range(1, halvings)), width]
        self.convs = nn.ModuleList(nn.Conv2d(*pair, 3, stride=2, padding=1) for pair in pairwise(channels))

    def forward(self, images: Tensor, index: Tensor | None = None) -> tuple[Tensor, tuple[int, int]]:
        """Embed images; as ``PatchEmbed``."""
        for conv in self.convs:
            images = F.gelu(conv(images))
        return super().forward(images, index)

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights: He's for the convolutions, the rest as ``PatchEmbed``."""
        super().initialize(generator)
        for conv in self.convs:
            assert isinstance(conv, nn.Conv2d)
            nn.init.kaiming_normal_(conv.weight, generator=generator)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)


STEMS = {"patch": PatchEmbed, "conv": ConvEmbed}
"""How images become patch tokens."""
