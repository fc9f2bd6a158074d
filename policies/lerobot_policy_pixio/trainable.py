"""What of an encoder a policy trains: nothing, its last blocks, low-rank additions to its attention, or all of it."""

import re
from collections.abc import Callable, Iterator

from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from lerobot_policy_pixio.options import PixioOptions
from pixio_robot.encoder import Encoder
from pixio_robot.errors import SettingError
from pixio_robot.foreign import TimmBackbone, TransformerBackbone
from pixio_robot.nn import Backbone, VisionTransformer
from pixio_robot.tokens import Tokens


class TrainableEncoder(Encoder):
    """An encoder whose tokens carry gradients to some of its weights.

    What runs before the first trained weight records nothing for the backward pass. All of it stays in evaluation mode,
    trained parts too: like ACT's own ResNet it keeps its batch statistics, and nothing is dropped.

    Args:
        encoder: The encoder, which is changed in place: give a copy of one that others use.
        config: What to train.
        fingerprint: Name of the weights before training; that of ``encoder`` when absent.

    Raises:
        SettingError: If this encoder has nothing of what should be trained.
    """

    def __init__(self, encoder: Encoder, config: PixioOptions, *, fingerprint: str | None = None) -> None:
        super().__init__(encoder.spec, encoder.backbone, provenance=encoder.provenance)
        self.fingerprint = fingerprint or encoder.fingerprint
        SELECTIONS[config.train_encoder](self, config)

    def forward(self, images: Tensor) -> Tokens:
        """Encode images as ``Encoder`` does, with gradients."""
        return self._tokens_after(images, [self.spec.depth - 1], norm=True)[0]


def attention_layers(encoder: Encoder) -> list[str]:
    """Names, within the backbone, of the linear layers of its blocks' attention.

    Raises:
        SettingError: If it has none.
    """
    inside = {layer for block in _blocks(encoder) for layer in block.modules() if isinstance(layer, nn.Linear)}
    names = [
        name
        for name, layer in encoder.backbone.named_modules()
        if layer in inside and re.search(r"(^|[._])(attn|attention)[._]", name)
    ]
    if not names:
        raise SettingError(
            f"train_encoder='lora' adds to attention, and an encoder of family {encoder.spec.family!r} has none: "
            "choose 'last_blocks' or 'full'."
        )
    return names


def _train_last_blocks(encoder: Encoder, config: PixioOptions) -> None:
    depth = encoder.spec.depth
    if config.train_blocks > depth:
        raise SettingError(
            f"train_blocks={config.train_blocks}, but this encoder has {depth} blocks; choose from 1 to {depth}."
        )
    for part in [*list(_blocks(encoder))[-config.train_blocks :], _final_norm(encoder.backbone)]:
        if part is not None:
            part.requires_grad_(True)


def _train_additions(encoder: Encoder, config: PixioOptions) -> None:
    settings = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_rank, target_modules=attention_layers(encoder))
    inject_adapter_in_model(settings, encoder.backbone)
    encoder.eval()


def _train_everything(encoder: Encoder, _config: PixioOptions) -> None:
    encoder.backbone.requires_grad_(True)
    if isinstance(encoder.backbone, VisionTransformer) and encoder.backbone.family == "mae":
        encoder.backbone.pos_embed.requires_grad_(False)  # sines and cosines, which MAE never learns


SELECTIONS: dict[str, Callable[[Encoder, PixioOptions], None]] = {
    "last_blocks": _train_last_blocks,
    "lora": _train_additions,
    "full": _train_everything,
}


def _blocks(encoder: Encoder) -> Iterator[nn.Module]:
    """The encoder's blocks in order, wherever its family keeps them: the largest list of as many as it is deep."""
    lists = [
        module
        for module in encoder.backbone.modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) == encoder.spec.depth
    ]
    if not lists:
        raise SettingError(
            f"The blocks of an encoder of family {encoder.spec.family!r} are not in one list: set train_encoder='full'."
        )
    return iter(max(lists, key=lambda blocks: sum(parameter.numel() for parameter in blocks.parameters())))


def _final_norm(backbone: Backbone) -> nn.Module | None:
    match backbone:
        case VisionTransformer():
            return backbone.norm
        case TransformerBackbone():
            return getattr(backbone.model, backbone.norm)
        case TimmBackbone():
            return getattr(backbone.network, "norm", None)
        case _:
            return None
