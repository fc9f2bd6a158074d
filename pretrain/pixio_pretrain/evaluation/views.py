"""How images are cut for classification; all chance comes from PyTorch's generator."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, v2

from pixio_pretrain.data.loader import outlive_termination
from pixio_pretrain.evaluation.job import Job
from pixio_pretrain.evaluation.sets.classes import ClassSet

BICUBIC = InterpolationMode.BICUBIC


def to_pixels(image: Image.Image) -> Tensor:
    """Turn an RGB image into uint8 [3 h w]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def centre_view(side: int, resize: int) -> v2.Transform:
    """Resize the shorter side, bicubically, and cut the centre out."""
    return v2.Compose([v2.Resize(resize, BICUBIC, antialias=True), v2.CenterCrop(side)])


def random_view(side: int) -> v2.Transform:
    """Cut out 8 to 100 % of the area, as ImageNet's training does, and mirror one in two."""
    return v2.Compose([v2.RandomResizedCrop(side, interpolation=BICUBIC, antialias=True), v2.RandomHorizontalFlip()])


class NoisyRandAugment(v2.Transform):
    """Two random operations of RandAugment (arXiv 1909.13719), of magnitude 9 of 10, deviating normally by 0.5.

    The recipe of MAE's fine-tuning, "rand-m9-mstd0.5-inc1", with torchvision's list of operations for timm's. As in
    timm, each of the two is left out by chance, one time in two.
    """

    BINS = 101

    def __init__(self) -> None:
        super().__init__()
        self.inner = [
            v2.RandAugment(num_ops=1, magnitude=magnitude, num_magnitude_bins=self.BINS, interpolation=BICUBIC)
            for magnitude in range(self.BINS)
        ]

    def forward(self, *inputs: Any) -> Any:
        """Change an image."""
        (image,) = inputs
        for _ in range(2):
            if torch.rand(()) < 0.5:
                continue
            magnitude = 10 * (9 + 0.5 * torch.randn(()).item())
            image = self.inner[round(min(max(magnitude, 0), self.BINS - 1))](image)
        return image


class ErasedNormal(nn.Module):
    """Put noise over a rectangle of some of the normalised images (arXiv 1708.04896).

    Args:
        chance: Of each image, to be one of them.
    """

    def __init__(self, chance: float) -> None:
        super().__init__()
        self.erase = v2.RandomErasing(p=chance, scale=(0.02, 1 / 3), ratio=(0.3, 10 / 3), value="random")  # pyright: ignore[reportArgumentType]

    def forward(self, pixels: Tensor) -> Tensor:
        """Change normalised images [b 3 h w], each by itself."""
        return torch.stack([self.erase(image) for image in pixels])


class _Views(Dataset[Tensor]):
    def __init__(self, images: ClassSet, view: v2.Transform) -> None:
        self.images, self.view = images, view

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return to_pixels(self.view(self.images.image(index)))


def batches_of(images: ClassSet, view: v2.Transform, job: Job, *, start: int = 0) -> Iterator[Tensor]:
    """Give views that leave nothing to chance, in order, from one on: uint8 [b 3 h w]."""
    rows: Sequence[int] = range(start, len(images))
    loader = DataLoader(
        _Views(images, view),
        job.config.batch_size,
        sampler=rows,
        num_workers=job.config.workers,
        worker_init_fn=outlive_termination,
    )
    return iter(loader)
