"""How the families that we build ourselves are written: configurations and key names.

Pixio and MAE have Hugging Face's layouts; descriptors and keypoints, which transformers lacks, keep their own names.

Inside the library, weights carry Meta's key names; every other spelling is renamed on the way in.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pixio_robot.encoder import EncoderSpec
from pixio_robot.errors import SettingError
from pixio_robot.nn import NORM_EPS

CONV_TYPE = "pixio_conv"
"""Our own model type for Pixio with a stem of convolutions, which transformers does not have."""

PLAIN = {"pixio_descriptors": "descriptors", "pixio_keypoints": "keypoints"}
"""Our own model types of families whose weights are written as they are, and the families."""

MODEL_TYPES = {"pixio": "pixio", CONV_TYPE: "pixio", "vit_mae": "mae", **PLAIN}
"""Model types, and our families."""

# Hugging Face's spelling -> Meta's. transformers renamed its modules more than once; files keep any of these names.
_RENAMES = [
    (r"^(?:pixio|vit)\.", ""),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^layernorm\.", "norm."),
    (r"^(?:encoder\.layer|encoder\.layers|layers|layer)\.(\d+)\.", r"blocks.\1."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.output\.dense\.|\.attention\.o_proj\.", ".attn.proj."),
    (r"\.attention\.(?:attention\.)?(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.q_proj\.", ".attn.query."),
    (r"\.attention\.k_proj\.", ".attn.key."),
    (r"\.attention\.v_proj\.", ".attn.value."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
]
# Meta's spelling -> the one of the files on the hub.
_HUB_RENAMES = [
    (r"^cls_token$", "embeddings.cls_token"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^norm\.", "layernorm."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layer.\1.attention.output.dense."),
    (r"^blocks\.(\d+)\.attn\.(query|key|value)\.", r"encoder.layer.\1.attention.attention.\2."),
    (r"^blocks\.(\d+)\.", r"encoder.layer.\1."),
]
# MAE's files name four layers as the first vision transformers did.
_MAE_RENAMES = [
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
]


def spec_of(config: Mapping[str, Any]) -> EncoderSpec:
    """Read the sizes out of a ``config.json``.

    Raises:
        KeyError: If a size is missing.
        SettingError: If the sizes do not fit together, or the network is of another kind.
    """
    family = MODEL_TYPES[config["model_type"]]
    if family in PLAIN.values():
        sizes = {"width": config["hidden_size"], "patch_size": config["patch_size"], "image_size": config["image_size"]}
        return EncoderSpec(family=family, depth=1, heads=config.get("num_cameras", 1), class_tokens=0, **sizes)
    if config.get("hidden_act", "gelu") != "gelu" or config.get("layer_norm_eps", NORM_EPS) > NORM_EPS:
        told = f"hidden_act={config.get('hidden_act')!r}, layer_norm_eps={config.get('layer_norm_eps')!r}"
        raise SettingError(f"A network of another kind ({told}); these compute with 'gelu' and {NORM_EPS}.")
    width = config["hidden_size"]
    ratio = config.get("mlp_ratio", 4)
    if family == "mae":
        ratio, rest = divmod(config["intermediate_size"], width)
        if rest:
            raise SettingError(f"An MLP of {config['intermediate_size']} is no multiple of the width {width}.")
    return EncoderSpec(
        family=family,
        width=width,
        depth=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        patch_size=config["patch_size"],
        image_size=config["image_size"],
        class_tokens=config["n_cls_tokens"] if family == "pixio" else 1,
        mlp_ratio=ratio,
        stem="conv" if config["model_type"] == CONV_TYPE else "patch",
    )


def config_of(spec: EncoderSpec) -> dict[str, Any]:
    """Write the sizes as a ``config.json`` of transformers; the inverse of ``spec_of``."""
    for kind, family in PLAIN.items():
        if spec.family == family:
            sizes = {"hidden_size": spec.width, "patch_size": spec.patch_size, "image_size": spec.image_size}
            cameras = {"num_cameras": spec.heads} if family == "keypoints" else {}
            return {"model_type": kind, **sizes, **cameras}
    config = {
        "hidden_size": spec.width,
        "num_hidden_layers": spec.depth,
        "num_attention_heads": spec.heads,
        "hidden_act": "gelu",
        "layer_norm_eps": NORM_EPS,
        "image_size": spec.image_size,
        "patch_size": spec.patch_size,
        "num_channels": 3,
        "qkv_bias": True,
    }
    if spec.family == "mae":
        own = {"architectures": ["ViTMAEModel"], "model_type": "vit_mae"}
        own |= {"intermediate_size": spec.mlp_ratio * spec.width, "mask_ratio": 0.0}  # an encoder sees every patch
    else:
        own = {"architectures": ["PixioModel"], "model_type": "pixio"}
        own |= {"mlp_ratio": spec.mlp_ratio, "n_cls_tokens": spec.class_tokens}
        own |= {"model_type": CONV_TYPE} if spec.stem == "conv" else {}
    return config | own


def is_encoder_key(key: str) -> bool:
    """Tell an encoder's weights, in Meta's spelling, from those of a decoder or a head."""
    return key in ("cls_token", "pos_embed") or key.startswith(("patch_embed.", "blocks.", "norm."))


def _rename(key: str, renames: list[tuple[str, str]]) -> str:
    for pattern, replacement in renames:
        key = re.sub(pattern, replacement, key)
    return key


def to_meta_layout(state: Mapping[str, Tensor], family: str) -> dict[str, Tensor]:
    """Rename Hugging Face's keys, and fuse query, key and value."""
    if family in PLAIN.values():
        return dict(state)
    renamed = {_rename(key, _RENAMES): value for key, value in state.items()}
    for key in [key for key in renamed if ".attn.query." in key]:
        parts = [key.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if all(part in renamed for part in parts):
            renamed[key.replace(".query.", ".qkv.")] = torch.cat([renamed.pop(part) for part in parts])
    return {key: value for key, value in renamed.items() if is_encoder_key(key)}


def to_hub_layout(state: Mapping[str, Tensor], family: str) -> dict[str, Tensor]:
    """Split the fused projection, and rename Meta's keys as the files on the hub spell them."""
    if family in PLAIN.values():
        return dict(state)
    split: dict[str, Tensor] = {}
    for key, value in state.items():
        if ".attn.qkv." in key:
            for part, rows in zip(("query", "key", "value"), value.chunk(3), strict=True):
                split[key.replace(".qkv.", f".{part}.")] = rows.contiguous()
        else:
            split[key] = value
    renames = (_MAE_RENAMES if family == "mae" else []) + _HUB_RENAMES
    return {_rename(key, renames): value for key, value in split.items()}
