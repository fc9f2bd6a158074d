"""From frames to the tokens that a cache keeps."""

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pixio_robot.cache.source import Augmentation, augment_frames
from pixio_robot.encoder import Encoder
from pixio_robot.images import resize
from pixio_robot.tokens import Tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How frames become cached tokens.

    Attributes:
        encoder: The frozen encoder.
        grid: Patches are averaged to grid x grid; all are kept when None.
        size: Frames are resized to (height, width) pixels; they stay as they are when None.
        batch_size: Frames per encoder pass.
        augment: Makes the variants.
    """

    encoder: Encoder
    grid: int | None = None
    size: tuple[int, int] | None = None
    batch_size: int = 64
    augment: Augmentation | None = None

    def encode(self, frames: Tensor, start: int, variant: int) -> Tokens:
        """Encode frames of one camera.

        Args:
            frames: Uint8 [n 3 h w].
            start: Global index of the first.
            variant: 0 for clean frames, from 1 for augmented ones.

        Returns:
            Tokens in float16, on the CPU.
        """
        parts = []
        for offset in range(0, len(frames), self.batch_size):
            images = resize(frames[offset : offset + self.batch_size], self.size)
            if variant:
                assert self.augment is not None, "variants come with an augmentation"
                images = augment_frames(images, self.augment, start=start + offset, variant=variant)
            tokens = self.encoder(images)
            parts.append(tokens if self.grid is None else tokens.pool(self.grid))
        classes, patches = (torch.cat([getattr(part, name) for part in parts]) for name in ("classes", "patches"))
        return Tokens(classes, patches, parts[0].grid).map(lambda x: x.to("cpu", torch.float16))

    def seen(self, frames: Tensor) -> tuple[int, int]:
        """(height, width) in pixels at which the encoder sees frames [n 3 h w]."""
        return self.size or (frames.shape[-2], frames.shape[-1])

    @property
    def identity(self) -> dict[str, Any]:
        """What must agree for two recipes to give the same tokens, in JSON's types."""
        encoder, augment = self.encoder, self.augment
        return {
            "encoder_sha256": encoder.fingerprint,
            "encoder_dtype": str(next(encoder.parameters()).dtype).removeprefix("torch."),
            "class_tokens": encoder.spec.class_tokens,
            "width": encoder.spec.width,
            "image_size": encoder.spec.image_size,
            "size": list(self.size) if self.size else None,
            "pooled_to": self.grid,
            "augmentation": None if augment is None else json.loads(json.dumps(dict(augment.description))),
        }
