"""Encoders that transformers runs: wrapped so that they speak in Tokens. transformers is an extra, imported on use.

A family is a row of ``READERS``: a backbone around the model, and how to read the sizes out of its configuration.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pixio_robot.encoder import Encoder, EncoderSpec
from pixio_robot.errors import CheckpointError, SettingError
from pixio_robot.nn import Backbone
from pixio_robot.tokens import Tokens


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
            self.model.apply(self.model._init_weights)


class ResNetBackbone(ForeignBackbone):
    """A ResNet (arXiv 1512.03385): the cells of its map are the patches; no class tokens, no final norm."""

    @property
    def spec(self) -> EncoderSpec:
        """The sizes; blocks are the stages."""
        config = self.model.config
        stages = len(config.depths)
        stride = 4 * 2 ** (stages - 1 + config.downsample_in_first_stage)
        return EncoderSpec(
            family="resnet",
            width=config.hidden_sizes[-1],
            depth=stages,
            heads=1,
            patch_size=stride,
            image_size=7 * stride,
            class_tokens=0,
        )

    def tokens_after(self, images: Tensor, blocks: Sequence[int], *, norm: bool) -> list[Tokens]:
        """Encode normalised images; see ``Backbone``. Earlier stages are narrower and finer."""
        del norm
        maps = self.model(images, output_hidden_states=True).hidden_states[1:]  # the first is the stem's
        found = []
        for block in blocks:
            b, d, h, w = maps[block].shape
            found.append(Tokens(maps[block].new_empty(b, 0, d), maps[block].flatten(2).transpose(1, 2), (h, w)))
        return found


READERS: dict[str, type[ForeignBackbone]] = {"resnet": ResNetBackbone}
"""Backbones by Hugging Face's model type."""


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
    backbone = READERS[config.model_type](model)
    return Encoder(backbone.spec, backbone, provenance=provenance)


def read_folder(folder: Path, provenance: Mapping[str, Any]) -> Encoder:
    """Read a folder that transformers wrote; its ``config.json`` names a row of ``READERS``.

    Raises:
        CheckpointError: If transformers is not installed, or refuses the folder.
    """
    try:
        import transformers
    except ImportError as error:
        raise CheckpointError(f"{folder} needs transformers: pip install 'pixio-robot[transformers]'.") from error
    try:
        model, found = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder} cannot be read by transformers: {error}") from error
    if found["missing_keys"]:
        raise CheckpointError(f"{folder} lacks weights: {', '.join(sorted(found['missing_keys'])[:5])}.")
    return wrap_model(model.float(), provenance=provenance)
