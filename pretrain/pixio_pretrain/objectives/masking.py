"""Block masks (arXiv 2512.15715, section 3.2): hide whole square blocks of patches, so that a model must imagine.

A block side of 1 is the random masking of MAE (arXiv 2111.06377).
"""

import math
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pixio_pretrain.data.crops import CHANCES, crop_image, crop_images, draw_box, place_boxes
from pixio_pretrain.data.samples import Batch, BatchMaker, Sample, SampleMaker
from pixio_robot.encoder import EncoderSpec
from pixio_robot.errors import ImageError, SettingError
from pixio_robot.images import check_images, normalize
from pixio_robot.nn import VisionTransformer


def count_visible(blocks: int, ratio: float) -> int:
    """Say how many of ``blocks`` stay visible when ``ratio`` of them are hidden, rounded down.

    Rounding to nine places first keeps the floating-point error of ``1 - ratio`` from costing a block: of 10 blocks at
    0.9, one stays visible.
    """
    return math.floor(round(blocks * (1 - ratio), 9))


def check_mask(grid: int, block: int, ratio: float, *, setting: str = "mask_ratio") -> None:
    """Refuse masks that do not fit a ``grid`` x ``grid`` image of patches; ``setting`` is what the ratio is called.

    Raises:
        SettingError: If the block side does not divide the grid or is all of it, or if the ratio hides everything or
            nothing.
    """
    sides = [side for side in range(1, grid + 1) if grid % side == 0]
    if block not in sides:
        nearest = min(sides, key=lambda side: abs(side - block))
        raise SettingError(
            f"mask_block={block} does not divide a grid of {grid} x {grid} patches; nearest that does: {nearest}."
        )
    blocks = (grid // block) ** 2
    if blocks == 1:
        raise SettingError(f"mask_block={block} is the whole grid, which cannot be hidden in part; choose it smaller.")
    if not 0 < ratio < 1 or not 0 < count_visible(blocks, ratio) < blocks:
        highest = math.floor(1000 * (1 - 1 / blocks)) / 1000
        raise SettingError(
            f"{setting}={ratio} of {blocks} blocks leaves none hidden or none visible; "
            f"choose it above 0 and not above {highest}, or a smaller mask_block."
        )


def draw_order(images: Tensor, noise: Tensor | None, *, grid: int, block: int) -> Tensor:
    """Order the patches of each image, those that stay visible first.

    Args:
        images: [b ...]; says how many and where.
        noise: [b blocks], row-major over the grid of blocks; the smallest entries come first. Uniform when absent.
        grid: Patches per image side.
        block: Patches per block side.

    Returns:
        As ``shuffle_patches``.

    Raises:
        SettingError: If the noise is of another shape.
    """
    shape = (len(images), (grid // block) ** 2)
    if noise is None:
        noise = torch.rand(shape, device=images.device)
    elif noise.shape != shape:
        raise SettingError(f"The noise must be [images, mask blocks], here {list(shape)}, not {list(noise.shape)}.")
    return shuffle_patches(noise.to(images.device), grid=grid, block=block)


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


class View(NamedTuple):
    """A batch of images and what is seen of them.

    Attributes:
        pixels: Normalised images [b 3 h w].
        order: Indices [b n] of all patches, visible ones first.
        visible: Patches per image that the encoder sees.
    """

    pixels: Tensor
    order: Tensor
    visible: int

    def mask(self) -> Tensor:
        """[b n], float32, 1 where hidden."""
        mask = torch.ones(self.order.shape, device=self.order.device)
        return mask.scatter(1, self.order[:, : self.visible], 0.0)


def draw_view(images: Tensor, noise: Tensor | None, *, spec: EncoderSpec, block: int, ratio: float) -> View:
    """Hide ``ratio`` of the blocks of images [b 3 h w], uint8 or float in [0, 1]; ``noise`` as for ``draw_order``.

    Raises:
        ImageError: If the images are not of the encoder's native size.
        SettingError: If the noise is of another shape.
    """
    check_native(images, spec.image_size)
    grid = spec.image_size // spec.patch_size
    order = draw_order(images, noise, grid=grid, block=block)
    return View(normalize(images, torch.float32), order, count_visible((grid // block) ** 2, ratio) * block**2)


def encode_visible(vit: VisionTransformer, pixels: Tensor, visible: Tensor) -> Tensor:
    """Encode the class tokens and some of the patches only.

    Args:
        vit: The network.
        pixels: Normalised images [b 3 h w].
        visible: Indices [b k] of the patches to see.

    Returns:
        Tokens [b c+k d] after the final norm, class tokens first, patches in the order of ``visible``.
    """
    return vit.transform(torch.cat(vit.embed(pixels, visible), dim=1))


def check_native(images: Tensor, side: int) -> None:
    """Refuse images of another shape or range than an encoder reads, or of another size than its own ``side``.

    Raises:
        ImageError: Says what is wrong.
    """
    check_images(images, patch_size=1)
    if images.shape[2:] != (side, side):
        raise ImageError(
            f"Pre-training reads images of its native {side} x {side} pixels, "
            f"not {images.shape[2]} x {images.shape[3]}: crop them, or set image_size."
        )


def crop_with_noise(
    side: int, *, blocks: int, crop_scale: float, mirror: bool = False, companion: bool = False
) -> SampleMaker:
    """Say how an image becomes a crop, "images" [3 side side], and the "noise" [blocks] that hides some of it.

    Args:
        side: Side of the crop in pixels.
        blocks: Mask blocks per image.
        crop_scale: Smallest area of a crop as a share of the image; 1 takes the largest centred square, never mirrored.
        mirror: Flip half of the crops left to right.
        companion: Cut the same crop out of a second image, too: "companion" and "companion_noise". An image that comes
            alone is its own companion.
    """
    how = {"side": side, "blocks": blocks, "crop_scale": crop_scale, "mirror": mirror, "companion": companion}
    return partial(_crop_with_noise, **how)  # no closure, which no worker that is not forked could be given


def _crop_with_noise(
    image: Image.Image,
    random: np.random.Generator,
    other: Image.Image | None = None,
    *,
    side: int,
    blocks: int,
    crop_scale: float,
    mirror: bool,
    companion: bool,
) -> Sample:
    box = draw_box(image.size, crop_scale, random)
    flip = mirror and crop_scale < 1 and random.random() < 0.5

    def cut(picture: Image.Image) -> NDArray[np.uint8]:
        crop = crop_image(picture, box, side)
        return np.ascontiguousarray(crop[..., ::-1]) if flip else crop

    sample: Sample = {"images": cut(image), "noise": random.random(blocks, dtype=np.float32)}
    if companion:
        sample["companion"] = cut(image if other is None else other)
        sample["companion_noise"] = random.random(blocks, dtype=np.float32)
    return sample


def crop_all_with_noise(side: int, *, blocks: int, crop_scale: float, mirror: bool = False) -> BatchMaker:
    """Say how images on a device become crops and noise there; arguments as for ``crop_with_noise``.

    Where other images come as well, the same crops are cut out of them: "companion" and "companion_noise".
    """

    def make(images: Tensor, random: np.random.Generator, others: Tensor | None = None) -> Batch:
        count, (height, width), device = len(images), images.shape[2:], images.device
        boxes = torch.from_numpy(place_boxes(random.random((count, CHANCES)), (width, height), crop_scale)).to(device)
        flip = torch.from_numpy(random.random(count) < 0.5).to(device) if mirror and crop_scale < 1 else None

        def cut(pictures: Tensor) -> Tensor:
            crops = crop_images(pictures, boxes, side)
            return crops if flip is None else torch.where(flip[:, None, None, None], crops.flip(3), crops)

        def noise() -> Tensor:
            return torch.from_numpy(random.random((count, blocks), dtype=np.float32)).to(device)

        batch = {"images": cut(images), "noise": noise()}
        return batch if others is None else batch | {"companion": cut(others), "companion_noise": noise()}

    return make
