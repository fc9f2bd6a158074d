"""What is trained of a pixel-level objective and has a momentum twin: features, pyramid, projections."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from pixio_pretrain.objectives.backbones import build_features, build_fpn, initialize_fpn
from pixio_pretrain.objectives.base import EncoderConfig, ObjectiveConfig
from pixio_pretrain.objectives.propagation import initialize_heads, projection_head
from pixio_robot.errors import SettingError


@dataclass(kw_only=True)
class PixelConfig(EncoderConfig, ObjectiveConfig):
    """Settings that pixel-level objectives share; the defaults are those of PixPro's own pre-training.

    Attributes:
        encoder: "resnet18" or "resnet50", whose only size is ``image_size``, or a row of ``ENCODERS``.
        projection_hidden: Hidden channels of the projection heads.
        projection_width: Channels in which cells are compared.
        momentum: Share of itself that the momentum network keeps at the first step; it rises to 1 along a cosine.
        threshold: Cells of two views are positive when closer than this, in diagonals of the larger cell.
        instance_weight: Weight of the instance branch, which compares whole views; 0 leaves it out.
        fpn_levels: Train a feature pyramid too, on so many of a ResNet's maps, coarsest first; 0 trains none. 3 fits
            torchvision's RetinaNet and FCOS, 4 its Faster R-CNN (at 224 pixels, that compares 3136 cells a view).
        fpn_width: Channels of the pyramid.
    """

    batch_norms: ClassVar[bool] = True

    encoder: str = "resnet50"
    projection_hidden: int = 4096
    projection_width: int = 256
    momentum: float = 0.99
    threshold: float = 0.7
    instance_weight: float = 0.0
    fpn_levels: int = 0
    fpn_width: int = 256

    def check(self) -> None:
        """Refuse shared settings that cannot work.

        Raises:
            SettingError: If there are any.
        """
        if min(self.projection_hidden, self.projection_width, self.fpn_width) < 1:
            raise SettingError("projection_hidden, projection_width and fpn_width must be at least 1.")
        if not 0 <= self.momentum <= 1:
            raise SettingError(f"momentum={self.momentum} must lie in [0, 1].")
        if self.threshold <= 0:
            raise SettingError(f"threshold={self.threshold} leaves no cells that meet; PixPro's is 0.7.")
        if self.instance_weight < 0:
            raise SettingError(f"instance_weight={self.instance_weight} must not be negative.")


class Branch(nn.Module):
    """Features, pyramid and projections: the part of the model that has a momentum twin.

    Args:
        config: All settings.
    """

    def __init__(self, config: PixelConfig) -> None:
        super().__init__()
        self.features = build_features(config)
        widths, levels = self.features.widths, config.fpn_levels
        if not 0 <= levels <= len(widths) or (levels and len(widths) == 1):
            raise SettingError(
                f"fpn_levels={levels}: {config.encoder} makes {len(widths)} map{'s' * (len(widths) > 1)}; a pyramid "
                "stands on 1 to 4 maps of a ResNet, and 0 is none."
            )
        hidden, width = config.projection_hidden, config.projection_width
        self.fpn = build_fpn(widths[-levels:], config.fpn_width) if levels else None
        self.projector = projection_head(config.fpn_width if levels else widths[-1], hidden, width)
        self.instance_projector = projection_head(widths[-1], hidden, width) if config.instance_weight else None

    def forward(self, pixels: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """Project normalised images [b 3 h w]: maps [b d h' w'] for the pixels, finest first; one for the instance."""
        maps = self.features(pixels)
        levels = maps[-1:]
        if self.fpn is not None:
            count = len(self.fpn.inner_blocks)
            levels = list(self.fpn({str(level): map_ for level, map_ in enumerate(maps[-count:])}).values())
        instance = None if self.instance_projector is None else self.instance_projector(maps[-1])
        return [self.projector(level) for level in levels], instance

    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights."""
        self.features.initialize(generator)
        initialize_heads(self.projector, generator)
        if self.fpn is not None:
            initialize_fpn(self.fpn, generator)
        if self.instance_projector is not None:
            initialize_heads(self.instance_projector, generator)
