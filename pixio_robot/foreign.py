"""Encoders that transformers runs: wrapped so that they speak in Tokens. transformers is an extra, imported on use.

A family is a row of ``READERS``: a backbone around the model, which reads the sizes out of the model's configuration.
"""

import copy
import json
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pixio_robot.encoder import Encoder, EncoderSpec
from pixio_robot.errors import CheckpointError, ImageError, SettingError
from pixio_robot.images import HALVES, IMAGENET_STATISTICS, PixelStatistics
from pixio_robot.nn import Backbone
from pixio_robot.tokens import Tokens

PROCESSOR = "preprocessor_config.json"


class ForeignBackbone(Backbone):
    """A model of transformers.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    @property
    @abstractmethod
    def spec(self) -> EncoderSpec:
        """The sizes, read from the model's configuration."""

    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights, as the model's own class does."""
        with torch.random.fork_rng():
            if generator is not None:
                torch.manual_seed(generator.initial_seed())
            fresh = type(self.model)(self.model.config)  # _init_weights alone would leave batch statistics as they are
        self.model.load_state_dict(fresh.state_dict(), strict=False)


class TransformerBackbone(ForeignBackbone):
    """A vision transformer: class token first if there is one, then registers if there are any, then the patches.

    Args:
        model: The model.
        norm: Name of its final norm.
        class_tokens: 1 or 0. Registers are not given out.
        statistics: What its images are normalised by, unless its folder says otherwise.
    """

    def __init__(
        self, model: nn.Module, *, norm: str, class_tokens: int = 1, statistics: PixelStatistics = IMAGENET_STATISTICS
    ) -> None:
        super().__init__(model)
        self.norm = norm
        self.class_tokens = class_tokens
        self.statistics = statistics
        interpolates = self.model.config.model_type in ("siglip_vision_model", "vit")  # the others always do
        self.options = {"interpolate_pos_encoding": True} if interpolates else {}

    @property
    def spec(self) -> EncoderSpec:
        """The sizes."""
        config = self.model.config
        return EncoderSpec(
            family=config.model_type,
            width=config.hidden_size,
            depth=config.num_hidden_layers,
            heads=config.num_attention_heads,
            patch_size=config.patch_size,
            image_size=config.image_size,
            class_tokens=self.class_tokens,
            mlp_ratio=max(1, round(getattr(config, "intermediate_size", 4 * config.hidden_size) / config.hidden_size)),
        )

    def tokens_after(self, images: Tensor, blocks: Sequence[int], *, norm: bool) -> list[Tokens]:
        """Encode normalised images; see ``Backbone``."""
        patch = self.model.config.patch_size
        grid = (images.shape[2] // patch, images.shape[3] // patch)
        hidden = self.model(images, output_hidden_states=True, **self.options).hidden_states
        found = []
        for block in blocks:
            x = hidden[block + 1]  # the first are the embeddings
            x = getattr(self.model, self.norm)(x) if norm else x
            found.append(Tokens(x[:, : self.class_tokens], x[:, x.shape[1] - grid[0] * grid[1] :], grid))
        return found


class ResNetBackbone(ForeignBackbone):
    """A ResNet (arXiv 1512.03385): its stages are the blocks, the cells of their maps the patches; no class tokens."""

    @property
    def spec(self) -> EncoderSpec:
        """The sizes; earlier stages are narrower and finer."""
        config = self.model.config
        stages = len(config.depths)
        stride = 4 * 2 ** (stages - 1 + config.downsample_in_first_stage)
        return _spec_of_maps("resnet", width=config.hidden_sizes[-1], depth=stages, stride=stride)

    def tokens_after(self, images: Tensor, blocks: Sequence[int], *, norm: bool) -> list[Tokens]:
        """Encode normalised images; see ``Backbone``. There is no final norm."""
        del norm
        hidden = self.model(images, output_hidden_states=True).hidden_states  # the stem's comes first
        return [_tokens_of_map(hidden[block + 1]) for block in blocks]


class TimmBackbone(ForeignBackbone):
    """A model of timm, transformer or not, in transformers' wrapper."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        facts = self.network.pretrained_cfg
        self.statistics = PixelStatistics(tuple(facts["mean"]), tuple(facts["std"]))
        self.class_tokens = int(getattr(self.network, "has_class_token", False))

    @property
    def network(self) -> Any:
        """The model of timm."""
        return self.model.timm_model

    @property
    def spec(self) -> EncoderSpec:
        """The sizes; heads are not read."""
        info = self.network.feature_info
        last = info[-1]
        spec = _spec_of_maps("timm_wrapper", width=last["num_chs"], depth=len(info), stride=last["reduction"])
        if hasattr(self.network, "patch_embed") and hasattr(self.network.patch_embed, "img_size"):
            side = self.network.patch_embed.img_size[0]
        else:
            side = self.network.pretrained_cfg["input_size"][-1]
        side -= side % spec.patch_size
        return replace(spec, image_size=side, class_tokens=self.class_tokens)

    def tokens_after(self, images: Tensor, blocks: Sequence[int], *, norm: bool) -> list[Tokens]:
        """Encode normalised images; see ``Backbone``. Convolutional networks have no final norm to apply."""
        prefixed = bool(getattr(self.network, "num_prefix_tokens", 0))
        options = {"return_prefix_tokens": True} if prefixed else {}
        wanted = sorted(set(blocks))
        try:
            found = self.network.forward_intermediates(
                images, indices=wanted, norm=norm, intermediates_only=True, **options
            )
        except AssertionError as error:  # timm's way to refuse another size, where positions are not interpolated
            side = self.spec.image_size
            raise ImageError(f"This network of timm reads images of {side} x {side} pixels: {error}") from error
        tokens = {}
        for block, entry in zip(wanted, found, strict=True):
            patches, prefix = entry if prefixed else (entry, None)
            tokens[block] = _tokens_of_map(patches)
            if prefix is not None:
                tokens[block] = tokens[block]._replace(classes=prefix[:, : self.class_tokens])
        return [tokens[block] for block in blocks]


def _tokens_of_map(x: Tensor) -> Tokens:
    b, d, h, w = x.shape
    return Tokens(x.new_empty(b, 0, d), x.flatten(2).transpose(1, 2), (h, w))


def _spec_of_maps(family: str, *, width: int, depth: int, stride: int) -> EncoderSpec:
    return EncoderSpec(
        family=family, width=width, depth=depth, heads=1, patch_size=stride, image_size=7 * stride, class_tokens=0
    )


READERS: dict[str, Callable[[nn.Module], ForeignBackbone]] = {
    "dinov2": partial(TransformerBackbone, norm="layernorm"),
    "dinov2_with_registers": partial(TransformerBackbone, norm="layernorm"),
    "dinov3_vit": partial(TransformerBackbone, norm="norm"),
    "resnet": ResNetBackbone,
    "siglip_vision_model": partial(TransformerBackbone, norm="post_layernorm", class_tokens=0, statistics=HALVES),
    "timm_wrapper": TimmBackbone,
    "vit": partial(TransformerBackbone, norm="layernorm", statistics=HALVES),
}
"""Backbones by Hugging Face's model type."""

_PARTS = {"siglip": "SiglipVisionModel"}  # model types of which one part is the encoder, and the class that reads it


def model_type(config: Mapping[str, Any]) -> str | None:
    """Tell the model type from a ``config.json``; timm's own files on the hub have none."""
    return config.get("model_type", "timm_wrapper" if "architecture" in config else None)


def wrap_model(model: nn.Module, *, provenance: Mapping[str, Any] | None = None) -> Encoder:
    """Make a frozen encoder of a model of transformers.

    Args:
        model: Such as ``transformers.ResNetModel``; it is used, not copied.
        provenance: What is known of the weights.

    Raises:
        SettingError: If the model is of a type that ``READERS`` does not know.
    """
    config: Any = model.config
    if config.model_type not in READERS:
        raise SettingError(f"A model of type {config.model_type!r} cannot be wrapped; one of {sorted(READERS)} can.")
    backbone = READERS[config.model_type](model.eval())
    return Encoder(backbone.spec, backbone, provenance=provenance)


def read_folder(folder: Path, kind: str, provenance: Mapping[str, Any]) -> Encoder:
    """Read a folder that transformers or timm wrote.

    Args:
        folder: Has ``config.json`` and weights; ``preprocessor_config.json``, if there, says how pixels are normalised.
        kind: Its model type, see ``readable``.
        provenance: What is known of the weights.

    Raises:
        CheckpointError: If transformers (or timm) is not installed, or refuses the folder.
    """
    try:
        import transformers

        reader = getattr(transformers, _PARTS.get(kind, "AutoModel"))
        model, found = reader.from_pretrained(folder, output_loading_info=True)
    except ImportError as error:
        libraries = "'pixio-robot[transformers]'" + (" timm" if kind == "timm_wrapper" else "")
        raise CheckpointError(
            f"{folder} holds a model of type {kind!r}, which other libraries run: pip install {libraries} ({error})."
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder} cannot be read by transformers: {error}") from error
    lacking = [*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])]
    if lacking and all(key.startswith("pooler.") for key in lacking):
        model.pooler = None  # a classifier's ViT has none, and tokens do not pass through it
    elif lacking:
        raise CheckpointError(f"{folder} lacks weights of the sizes it promises: {', '.join(sorted(lacking)[:5])}.")
    encoder = wrap_model(model.float(), provenance=provenance)
    processor = folder / PROCESSOR
    if processor.is_file():
        facts = json.loads(processor.read_text())
        encoder.backbone.statistics = PixelStatistics(tuple(facts["image_mean"]), tuple(facts["image_std"]))
    return encoder


def write_folder(encoder: Encoder, folder: Path, *, dtype: torch.dtype | None) -> str:
    """Write model and ``preprocessor_config.json`` as transformers does; give the fingerprint of what was written."""
    stored: Any = copy.deepcopy(encoder.backbone.model)
    stored = stored.cpu().to(dtype)
    stored.save_pretrained(folder, max_shard_size="1TB")
    mean, std = encoder.backbone.statistics
    text = json.dumps({"image_mean": mean, "image_std": std}, indent=2)
    (folder / PROCESSOR).write_text(text + "\n")
    rounded = wrap_model(stored.float())
    rounded.backbone.statistics = encoder.backbone.statistics
    return rounded.fingerprint


def readable(kind: str | None) -> bool:
    """Whether models of this type are read here."""
    return kind in READERS or kind in _PARTS
