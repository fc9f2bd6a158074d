"""Block masks (arXiv 2512.15715, section 3.2): hide whole square blocks of patches, so that a model must imagine.

A block side of 1 is the random masking of MAE (arXiv 2111.06377).
"""

import math

import torch
from torch import Tensor

from pixio_robot.errors import SettingError


def count_visible(blocks: int, ratio: float) -> int:
    """Say how many of ``blocks`` stay visible when ``ratio`` of them are hidden, rounded down.

    Rounding to nine places first keeps the floating-point error of ``1 - ratio`` from costing a block: of 10 blocks at
    0.9, one stays visible.
    """
    return math.floor(round(blocks * (1 - ratio), 9))


def check_mask(grid: int, block: int, ratio: float) -> None:
    """Refuse masks that do not fit a ``grid`` x ``grid`` image of patches.

    Raises:
        SettingError: If the block side does not divide the grid, or if the ratio hides everything or nothing.
    """
    sides = [side for side in range(1, grid + 1) if grid % side == 0]
    if block not in sides:
        nearest = min(sides, key=lambda side: abs(side - block))
        raise SettingError(
            f"mask_block={block} does not divide a grid of {grid} x {grid} patches; nearest that does: {nearest}."
        )
    blocks = (grid // block) ** 2
    if ratio <= 0 or count_visible(blocks, ratio) < 1:
        raise SettingError(
            f"mask_ratio={ratio} of {blocks} blocks leaves none hidden or none visible; "
            f"choose it above 0 and not above {1 - 1 / blocks:.3g}, or a smaller mask_block."
        )


def shuffle_patches(noise: Tensor, *, grid: int, block: int) -> Tensor:
    """Order the patches of each image by the noise of their block.

    Args:
        noise: [b blocks], row-major over the grid of blocks.
        grid: Patches per image side.
        block: Patches per block side.

    Returns:
        Patch indices [b grid*grid], long: the blocks of smallest noise first, row-major inside each block. Its
        ``argsort`` puts shuffled patches back in their places.
    """
    side = grid // block
    patches = torch.arange(grid * grid, device=noise.device).view(side, block, side, block)
    patches = patches.transpose(1, 2).reshape(side * side, block * block)  # blocks, patches of a block
    return patches[noise.argsort(dim=1, stable=True)].flatten(1)  # b grid*grid


def take(tokens: Tensor, index: Tensor) -> Tensor:
    """Pick tokens [b n d] by index [b k], each image by its own: [b k d]."""
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
