"""Networks that make feature maps: torchvision's ResNets, the core's vision transformers, and a pyramid on top."""

import copy
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pixio_pretrain.objectives.base import EncoderConfig
from pixio_robot.encoder import ENCODERS, Encoder, EncoderSpec
from pixio_robot.errors import SettingError, UnknownNameError
from pixio_robot.foreign import wrap_model
from pixio_robot.nn import VisionTransformer

if TYPE_CHECKING:
    from torchvision.ops import FeaturePyramidNetwork

RESNETS = ("resnet18", "resnet50")
RESNET_STRIDE = 32
RESNET_SIZE = 224


class FeatureNet(nn.Module, ABC):
    """Normalised images to feature maps.

    Attributes:
        widths: Channels of each map, finest map first.
        image_size: Side of the training images in pixels.
    """

    widths: tuple[int, ...]
    image_size: int

    @abstractmethod
    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Encode normalised images [b 3 h w] into maps [b d h' w'], finest first."""

    @abstractmethod
    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights."""

    @abstractmethod
    def encoder(self, name: str) -> Encoder:
        """Copy the network as it is now into a frozen encoder whose provenance says ``name``."""


class ResNetFeatures(FeatureNet):
    """A ResNet of torchvision (arXiv 1512.03385) without its classifier: four maps, of strides 4 to 32.

    Args:
        name: One of ``RESNETS``.
        image_size: Side of the training images in pixels.
    """

    def __init__(self, name: str, image_size: int) -> None:
        super().__init__()
        from torchvision.models import get_model  # takes seconds to import, and other objectives do without

        self.image_size = image_size
        self.resnet: Any = get_model(name, weights=None)
        self.widths = tuple(self.resnet.fc.in_features // 2**level for level in (3, 2, 1, 0))
        self.resnet.fc = nn.Identity()

    @property
    def stages(self) -> list[Any]:
        """The four stages, finest first; each one is a sequence of blocks."""
        return [self.resnet.layer1, self.resnet.layer2, self.resnet.layer3, self.resnet.layer4]

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Encode normalised images; see ``FeatureNet``."""
        resnet = self.resnet
        x = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(pixels))))
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Draw convolutions from He's normal; each residual branch starts at zero (arXiv 1706.02677, section 5.1)."""
        for layer in self.resnet.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            elif isinstance(layer, nn.BatchNorm2d):
                layer.reset_parameters()
        for block in (block for stage in self.stages for block in stage):
            nn.init.zeros_(getattr(block, "bn3", block.bn2).weight)

    def encoder(self, name: str) -> Encoder:
        """Copy into a ``transformers.ResNetModel``; see ``FeatureNet``."""
        import transformers

        config = transformers.ResNetConfig(
            hidden_sizes=list(self.widths),
            depths=[len(stage) for stage in self.stages],
            layer_type="bottleneck" if hasattr(self.stages[0][0], "bn3") else "basic",
        )
        with torch.device("meta"):
            model = transformers.ResNetModel(config)
        state = {key: value.detach().clone() for key, value in to_hub_keys(self.resnet.state_dict()).items()}
        model.load_state_dict(state, assign=True)
        return wrap_model(model, provenance={"name": name})


class ViTFeatures(FeatureNet):
    """The core's vision transformer: one map, the grid of its patches; class tokens take part but are not seen.

    Args:
        spec: The sizes.
        drop_path: Stochastic depth of the last block.
    """

    def __init__(self, spec: EncoderSpec, drop_path: float) -> None:
        super().__init__()
        self.spec = spec
        self.widths = (spec.width,)
        self.image_size = spec.image_size
        self.vit = VisionTransformer(**asdict(spec), drop_path=drop_path)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Encode normalised images; see ``FeatureNet``."""
        (tokens,) = self.vit.tokens_after(pixels, [self.spec.depth - 1], norm=True)
        return [tokens.patches.transpose(1, 2).unflatten(2, tokens.grid)]

    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights as Pixio's pre-training does."""
        self.vit.initialize(generator)

    def encoder(self, name: str) -> Encoder:
        """Copy the transformer; see ``FeatureNet``."""
        return Encoder(self.spec, copy.deepcopy(self.vit), provenance={"name": name})


def build_features(config: EncoderConfig) -> FeatureNet:
    """Build the network that a config names.

    Raises:
        UnknownNameError: If it is neither a ResNet nor a row of ``ENCODERS``.
        SettingError: If the sizes do not fit together, or a ResNet is given sizes that only transformers have.
    """
    if config.encoder not in RESNETS:
        if config.encoder not in ENCODERS:
            raise UnknownNameError("encoder", config.encoder, [*RESNETS, *ENCODERS])
        return ViTFeatures(config.spec(), config.drop_path)
    sizes = ("width", "depth", "heads", "patch_size", "class_tokens", "stem")
    foreign = [name for name in sizes if getattr(config, name) is not None] + ["drop_path"] * bool(config.drop_path)
    if foreign:
        raise SettingError(f"{config.encoder} has no {', '.join(foreign)} to set; only vision transformers have.")
    image_size = config.image_size or RESNET_SIZE
    if image_size % RESNET_STRIDE:
        near = max(1, round(image_size / RESNET_STRIDE)) * RESNET_STRIDE
        raise SettingError(
            f"The cells of {config.encoder}'s map are {RESNET_STRIDE} pixels wide, which does not divide images of "
            f"{image_size} pixels; nearest: {near}."
        )
    return ResNetFeatures(config.encoder, image_size)


def build_fpn(widths: tuple[int, ...], width: int) -> "FeaturePyramidNetwork":
    """Build a feature pyramid (arXiv 1612.03144) over maps of some widths, finest first."""
    from torchvision.ops import FeaturePyramidNetwork

    return FeaturePyramidNetwork(list(widths), width)


@torch.no_grad()
def initialize_fpn(fpn: nn.Module, generator: torch.Generator | None = None) -> None:
    """Draw a pyramid's weights as torchvision does."""
    for layer in fpn.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_uniform_(layer.weight, a=1, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


_HUB_KEYS = [
    (r"^conv1\.", "embedder.embedder.convolution."),
    (r"^bn1\.", "embedder.embedder.normalization."),
    (r"\.downsample\.0\.", ".shortcut.convolution."),
    (r"\.downsample\.1\.", ".shortcut.normalization."),
    (r"\.conv(\d)\.", lambda match: f".layer.{int(match[1]) - 1}.convolution."),
    (r"\.bn(\d)\.", lambda match: f".layer.{int(match[1]) - 1}.normalization."),
    (r"^layer(\d)\.(\d+)\.", lambda match: f"encoder.stages.{int(match[1]) - 1}.layers.{match[2]}."),
]


def to_hub_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a ResNet's weights from torchvision's spelling to transformers'; a classifier is left out."""
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        if not key.startswith("fc."):
            for pattern, replacement in _HUB_KEYS:
                key = re.sub(pattern, replacement, key)
            renamed[key] = value
    return renamed
