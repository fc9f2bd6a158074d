"""Images on their way into an encoder: checked and normalised here and nowhere else."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pixio_robot.errors import ImageError


class PixelStatistics(NamedTuple):
    """What pixels in [0, 1] are normalised by, per channel: red, green, blue."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def like(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Give both as float32 [3 1 1], on the images' device."""
        mean, std = (torch.tensor(row, device=images.device).view(3, 1, 1) for row in self)
        return mean, std


IMAGENET_STATISTICS = PixelStatistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALVES = PixelStatistics((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def check_images(images: Tensor, patch_size: int) -> None:
    """Refuse what an encoder cannot read.

    Raises:
        ImageError: Unless ``images`` is a non-empty uint8 tensor, or float in [0, 1], of shape [b 3 h w] with
            both sides divisible by ``patch_size``.
    """
    if not isinstance(images, Tensor):
        raise ImageError(f"Images must be a torch.Tensor [b 3 h w], not {type(images).__name__}.")
    shape = list(images.shape)
    if images.ndim != 4 or shape[1] != 3:
        hint = ""
        if images.ndim == 4 and shape[-1] == 3:
            hint = " The channels come last here: pass images.permute(0, 3, 1, 2)."
        elif images.ndim == 3 and 3 in (shape[0], shape[-1]):
            hint = " This looks like one image: add the batch dimension with images[None]."
        elif images.ndim == 4 and shape[1] in (1, 4):
            hint = " Grey images: images.expand(-1, 3, -1, -1); an alpha channel: images[:, :3]."
        raise ImageError(f"Images must be RGB of shape [b 3 h w], not {shape}.{hint}")
    if shape[0] == 0:
        raise ImageError("The batch of images is empty; pass at least one image.")
    if not shape[2] or not shape[3] or shape[2] % patch_size or shape[3] % patch_size:
        near = [max(patch_size, round(side / patch_size) * patch_size) for side in shape[2:]]
        raise ImageError(
            f"Images of {shape[2]} x {shape[3]} pixels cannot be cut into patches of {patch_size}; "
            f"the nearest size that can is {near[0]} x {near[1]}."
        )
    check_pixels(images)


def check_pixels(images: Tensor) -> None:
    """Refuse values that are no raw pixels.

    Raises:
        ImageError: Unless ``images`` are uint8, or float in [0, 1].
    """
    if images.dtype == torch.uint8:
        return
    if not images.is_floating_point():
        raise ImageError(f"Images must be uint8 or float in [0, 1], not {images.dtype}.")
    low, high = (bound.item() for bound in images.detach().aminmax())
    if not (low >= 0 and high <= 1):  # also catches NaN
        hint = " Divide by 255, or pass uint8." if 1 < high <= 255 and low >= 0 else ""
        hint = hint or (" Pass raw RGB: the encoder normalises by itself." if -5 < low < 0 else "")
        raise ImageError(f"Float images must lie in [0, 1]; these span [{low:.4g}, {high:.4g}].{hint}")


def normalize(images: Tensor, dtype: torch.dtype, statistics: PixelStatistics = IMAGENET_STATISTICS) -> Tensor:
    """Map uint8 or float [0, 1] RGB [b 3 h w] to zero mean and unit variance by ``statistics``, in ``dtype``."""
    scale = 255.0 if images.dtype == torch.uint8 else 1.0
    mean, std = statistics.like(images)
    return ((images.float() / scale - mean) / std).to(dtype)


def denormalize(pixels: Tensor, statistics: PixelStatistics = IMAGENET_STATISTICS) -> Tensor:
    """Undo ``normalize``: to uint8 RGB [b 3 h w], values beyond white and black clipped."""
    mean, std = statistics.like(pixels)
    return ((pixels.float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def resize(images: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Resize uint8 or float images [b 3 h w] to (height, width), bilinearly with antialiasing; the one way to.

    Cached and live frames must be resized alike. The result keeps the dtype; images that fit are returned untouched.

    Raises:
        ImageError: If values to be resized are no raw pixels, see ``check_pixels``.
    """
    if size is None or tuple(images.shape[-2:]) == tuple(size):
        return images
    check_pixels(images)
    out = F.interpolate(images.float(), size=tuple(size), mode="bilinear", antialias=True)
    out = out.round().clamp(0, 255) if images.dtype == torch.uint8 else out.clamp(0, 1)  # of rounding alone
    return out.to(images.dtype)
