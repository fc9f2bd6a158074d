"""Faster R-CNN on a ResNet, of torchvision's parts: with a feature pyramid, or on the stage of stride 16 (C4)."""

import copy
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from pixio_robot.encoder import Encoder
from pixio_robot.errors import CheckpointError, SettingError

RATIOS = (0.5, 1.0, 2.0)
C4_SIZES = (32, 64, 128, 256, 512)
FPN_SIZES = ((32,), (64,), (128,), (256,), (512,))
FPN_WIDTH = 256


class Stages(nn.Module):
    """A ResNet's maps, by name, finest first.

    Args:
        model: A ``transformers.ResNetModel``; it is used, not copied.
        last: How many stages are run; the maps of all of them are given, or of the last one.
        every: Whether of all.
    """

    def __init__(self, model: Any, *, last: int, every: bool) -> None:
        super().__init__()
        self.embedder, self.stages = model.embedder, nn.ModuleList(list(model.encoder.stages)[:last])
        self.every = every
        self.widths: list[int] = list(model.config.hidden_sizes)[:last]
        self.out_channels = self.widths[-1]

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Encode normalised images [b 3 h w]."""
        x, maps = self.embedder(pixels), OrderedDict()
        for number, stage in enumerate(self.stages):
            x = stage(x)
            maps[str(number)] = x
        return maps if self.every else OrderedDict([("0", x)])


class PyramidStages(nn.Module):
    """The maps of all four stages under a feature pyramid (arXiv 1612.03144)."""

    def __init__(self, stages: Stages) -> None:
        super().__init__()
        self.stages = stages
        self.fpn = FeaturePyramidNetwork(stages.widths, FPN_WIDTH, extra_blocks=LastLevelMaxPool())
        self.out_channels = FPN_WIDTH

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Encode normalised images [b 3 h w]."""
        return self.fpn(self.stages(pixels))


class FixedNorms(FasterRCNN):
    """A detector whose backbone's batch norms can be kept as they were trained.

    Attributes:
        fixed: The norms that are kept.
    """

    fixed: tuple[nn.Module, ...] = ()

    def train(self, mode: bool = True) -> "FixedNorms":
        """Switch all but the norms that are kept."""
        super().train(mode)
        for norm in self.fixed:
            norm.eval()
        return self


def build_detector(
    encoder: Encoder,
    pyramid: Path | None,
    *,
    layout: str,
    classes: int,
    sizes: tuple[int, ...],
    longest: int,
    trained_norms: bool,
) -> tuple[FasterRCNN, int]:
    """Build a detector of a ResNet; what the encoder does not bring is drawn from PyTorch's generator.

    Args:
        encoder: Its ResNet is copied.
        pyramid: A pre-trained pyramid's file, for "fpn".
        layout: "fpn" or "c4".
        classes: Number of classes, without the background.
        sizes: Shorter sides of images in pixels: one of them by chance in training, the last one in measuring.
        longest: Bound on the longer side in pixels.
        trained_norms: Train the batch norms; else they keep the statistics and scales of pre-training.

    Returns:
        A detector that takes images in [0, 1] [3 h w] of any size, and how many levels of its pyramid are pre-trained.

    Raises:
        SettingError: If the encoder is no ResNet of four stages.
        CheckpointError: If the pyramid fits no such detector.
    """
    model = copy.deepcopy(getattr(encoder.backbone, "model", None))
    if encoder.spec.family != "resnet" or model is None or len(model.encoder.stages) != 4:
        raise SettingError(
            f"detection is for ResNets of four stages, not for an encoder of family {encoder.spec.family!r}."
        )
    model.float().requires_grad_(True)
    statistics = encoder.backbone.statistics
    options: dict[str, Any] = {
        "min_size": sizes,
        "max_size": longest,
        "image_mean": list(statistics.mean),
        "image_std": list(statistics.std),
    }
    levels = 0
    if layout == "fpn":
        body = PyramidStages(Stages(model, last=4, every=True))
        levels = load_pyramid(body.fpn, pyramid) if pyramid else 0
        anchors = AnchorGenerator(FPN_SIZES, (RATIOS,) * len(FPN_SIZES))
        detector = FixedNorms(body, classes + 1, rpn_anchor_generator=anchors, **options)
    else:
        body = Stages(model, last=3, every=False)
        width = model.config.hidden_sizes[-1]
        # The last stage is the head; a fresh norm behind it hands the classifier features of unit size.
        head = nn.Sequential(model.encoder.stages[3], nn.BatchNorm2d(width), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        detector = FixedNorms(
            body,
            rpn_anchor_generator=AnchorGenerator((C4_SIZES,), (RATIOS,)),
            box_roi_pool=MultiScaleRoIAlign(["0"], output_size=14, sampling_ratio=0),
            box_head=head,
            box_predictor=FastRCNNPredictor(width, classes + 1),
            **options,
        )
    if not trained_norms:
        parts = (model.embedder, model.encoder)
        norms = [layer for part in parts for layer in part.modules() if isinstance(layer, nn.BatchNorm2d)]
        detector.fixed = tuple(norm.requires_grad_(False) for norm in norms)
    return detector, levels


def load_pyramid(fpn: FeaturePyramidNetwork, file: Path) -> int:
    """Put a pre-trained pyramid, of some of the coarsest levels, into one of all levels; give their number.

    Raises:
        CheckpointError: If it has other shapes.
    """
    state = load_file(file)
    total, levels = len(fpn.inner_blocks), len({key.split(".")[1] for key in state if key.startswith("inner_blocks.")})
    shifted = {}
    for key, value in state.items():
        kind, level, rest = key.split(".", 2)
        shifted[f"{kind}.{int(level) + total - levels}.{rest}"] = value
    own = fpn.state_dict()
    wrong = [key for key, value in shifted.items() if key not in own or own[key].shape != value.shape]
    if not levels or wrong:
        raise CheckpointError(
            f"{file} fits no pyramid of width {FPN_WIDTH} over this ResNet: {', '.join(wrong[:4]) or 'it is empty'}."
        )
    with torch.no_grad():
        for key, value in shifted.items():
            own[key].copy_(value)
    return levels
