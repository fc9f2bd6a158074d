"""Training of a depth head."""

import numpy as np
import torch
from torch import Tensor, nn

from pixio_pretrain.geometry.losses import beyond, confidence_loss, gradient_matching, silog
from pixio_pretrain.geometry.sets import RgbdSet, Rows
from pixio_pretrain.geometry.taps import Taps
from pixio_robot.geometry.depth import Depth, DepthModel

NEAREST, FARTHEST = 0.05, 4.0
"""Metres between which depth counts, in training and in every table: nearer is inside the gripper, farther is floor
at the horizon and sky, and the cracks between the meshes of an arm, through which one sees either."""

GRADIENTS, BEYOND = 0.5, 0.1
"""Weights of ``gradient_matching`` and ``beyond``."""

WITHHELD = 0.2
"""Share of images whose pose the head is not told, where it works without."""


def is_valid(depth: Tensor) -> Tensor:
    """Say where depth counts."""
    return (depth >= NEAREST) & (depth <= FARTHEST)


class DepthTask:
    """The head of a ``DepthModel`` learns from a set.

    Args:
        model: Its encoder stays as it is.
        frames: The set.
        taps: What the encoder says of its frames; asked here when absent.

    Attributes:
        module: The head.
        samples: Frames.
    """

    def __init__(self, model: DepthModel, frames: RgbdSet, taps: Taps | None = None) -> None:
        self.model, self.samples, self._frames = model, len(frames), frames
        self.module: nn.Module = model.head
        self._taps = Taps(model.encoder, frames, model.taps) if taps is None else taps

    def loss(self, rows: Rows, random: torch.Generator) -> dict[str, Tensor]:
        """Give the loss of some frames, and its parts."""
        device = next(self.module.parameters()).device
        truth = self._frames.depths(rows).to(device)
        valid, posed = is_valid(truth), None
        if self.model.settings.rays and self.model.settings.coding != "support":
            posed = (torch.rand(len(rows), generator=random) >= WITHHELD).to(device)
        found = self._measure(rows, device, posed)
        depth = found.depth.clamp(min=NEAREST / 10)
        error = torch.where(valid, depth / torch.where(valid, truth, 1.0), 1.0).log().abs()
        parts = {
            "silog": silog(depth, truth, valid),
            "gradients": gradient_matching(depth, truth, valid),
            "beyond": beyond(depth, truth, farthest=FARTHEST),
            "confidence": confidence_loss(found.confidence, error, valid),
        }
        rest = BEYOND * parts["beyond"] + parts["confidence"]
        return {"loss": parts["silog"] + GRADIENTS * parts["gradients"] + rest, **parts}

    @torch.no_grad()
    def predict(self, rows: Rows, *, posed: bool = True) -> Depth:
        """Measure some frames with the head as it is, on the CPU; without poses if ``posed`` is false."""
        self.module.eval()
        device = next(self.module.parameters()).device
        told = None if posed else torch.zeros(len(rows), dtype=torch.bool, device=device)
        parts = [
            self._measure(part, device, None if told is None else told[: len(part)])
            for part in np.array_split(rows, -(-len(rows) // 32))
        ]
        return Depth(*(torch.cat(part).cpu() for part in zip(*parts, strict=True)))

    def _measure(self, rows: Rows, device: torch.device, posed: Tensor | None) -> Depth:
        intrinsics, cam2base = (part.to(device) for part in self._frames.calibration(rows))
        tokens = self._taps(rows, device)
        images = self._frames.images(rows) if self.model.settings.detail else None
        size = self._frames.size
        return self.model.from_tokens(tokens, size, intrinsics, cam2base, images=images, posed=posed)
