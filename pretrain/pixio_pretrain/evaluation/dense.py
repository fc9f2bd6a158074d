"""Heads that say something of every pixel, on a frozen encoder: crops to train on, windows that slide over images."""

from collections.abc import Callable
from itertools import batched

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F

from pixio_pretrain.evaluation.chance import seeded
from pixio_pretrain.evaluation.job import Job
from pixio_pretrain.evaluation.stages import StagesDPTHead, stage_widths, stages_of
from pixio_robot.errors import SettingError, UnknownNameError
from pixio_robot.geometry.heads import DPTHead, LinearHead
from pixio_robot.geometry.taps import taps_of

HEADS = ("linear", "dpt")
DPT_TAPS = 4
RATES = {"linear": 2e-4, "dpt": 1e-4}
"""Peak learning rates of Pixio's evaluations, by head."""


def check_head(head: str) -> None:
    """Refuse a head that there is not."""
    if head not in HEADS:
        raise UnknownNameError("head", head, HEADS)


class DenseReader(nn.Module):
    """A head on a frozen encoder; only the head is a part of the module, and of its checkpoints.

    Args:
        job: Whose encoder, device and precision.
        head: "linear" (the last block) or "dpt" (four blocks, or the last four stages of a convolutional network).
        preset: Sizes of DPT, a key of ``DPT_PRESETS``.
        channels: Numbers per pixel.
        side: Side in pixels of crops and windows.

    Raises:
        SettingError: The encoder's patches do not divide ``side``, or it has too few blocks.
    """

    def __init__(self, job: Job, *, head: str, preset: str, channels: int, side: int) -> None:
        super().__init__()
        check_head(head)
        encoder = job.encoder
        patch = encoder.spec.patch_size
        if side % patch:
            near = max(1, round(side / patch)) * patch
            raise SettingError(
                f"task.side={side} is not divisible by the encoder's patches of {patch}; nearest: {near}."
            )
        self.job, self.side = job, side
        widths = stage_widths(encoder) if head == "dpt" else None
        self.blocks = stages_of(widths) if widths else taps_of(encoder, DPT_TAPS if head == "dpt" else 1)
        with seeded(job.config.seed):
            if widths:
                self.head = StagesDPTHead([widths[block] for block in self.blocks], channels, preset=preset)
            elif head == "dpt":
                self.head = DPTHead(encoder.spec.width, DPT_TAPS, channels, preset=preset)
            else:
                self.head = LinearHead(encoder.spec.width, 1, channels)

    def forward(self, images: Tensor) -> Tensor:
        """Read images, uint8 or float in [0, 1] [b 3 h w]: float32 [b channels h w]."""
        tokens = self.job.encoder.intermediate(images.to(self.job.device), blocks=self.blocks)
        return self.head(tokens, (images.shape[2], images.shape[3])).float()

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW; everything is decayed, as in Pixio's evaluations."""
        return torch.optim.AdamW(self.head.parameters(), lr=0.0, betas=(0.9, 0.999), weight_decay=0.01, fused=True)

    @torch.no_grad()
    def slide(self, image: Tensor, finish: Callable[[Tensor], Tensor]) -> Tensor:
        """Read an image of any size window by window, as Pixio's evaluations do, and average where windows overlap.

        Windows start every two thirds of their side, from 0 on while that is inside the image; what they reach beyond
        it is filled with the mean colour, which is 0 once it is normalised.

        Args:
            image: uint8 [3 h w].
            finish: Makes of what the head says [b channels side side] that which is averaged.

        Returns:
            float32 [channels h w].
        """
        _, h, w = image.shape
        side, stride = self.side, int(self.side * 2 / 3)
        starts = [(top, left) for top in range(0, h, stride) for left in range(0, w, stride)]
        mean = torch.tensor(self.job.encoder.backbone.statistics.mean)[:, None, None]
        canvas = mean.expand(3, starts[-1][0] + side, starts[-1][1] + side).clone()
        canvas[:, :h, :w] = image.float() / 255
        total, count = None, torch.zeros(canvas.shape[1:])
        for part in batched(starts, self.job.config.batch_size):
            windows = torch.stack([canvas[:, top : top + side, left : left + side] for top, left in part])
            with self.job.autocast():
                said = self(windows)
            found = finish(said).cpu()
            total = torch.zeros(found.shape[1], *count.shape) if total is None else total
            for (top, left), values in zip(part, found, strict=True):
                total[:, top : top + side, left : left + side] += values
                count[top : top + side, left : left + side] += 1
        assert total is not None  # an image has pixels
        return (total / count.clamp(min=1))[:, :h, :w]


def draw_crop(image: Tensor, target: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Cut a random square out of an image and its map, and mirror one in two.

    Args:
        image: [3 h w], both sides at least ``side``.
        target: [h w].
        side: Pixels.

    Returns:
        [3 side side] and [side side].
    """
    top, left = (int(torch.randint(length - side + 1, ())) for length in image.shape[1:])
    image, target = (F.crop(part, top, left, side, side) for part in (image, target[None]))
    if torch.rand(()) < 0.5:
        image, target = F.horizontal_flip(image), F.horizontal_flip(target)
    return image, target[0]
