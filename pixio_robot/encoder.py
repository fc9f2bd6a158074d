"""The frozen encoder: images in, class tokens and patch tokens out."""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pixio_robot.descriptors import WIDTH, DescriptorNet, KeypointNet
from pixio_robot.errors import SettingError, UnknownNameError
from pixio_robot.hashes import weights_sha256
from pixio_robot.images import check_images, normalize
from pixio_robot.nn import Backbone, VisionTransformer
from pixio_robot.stems import STEMS
from pixio_robot.tokens import Tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderSpec:
    """The sizes of an encoder: everything needed to build it, nothing about its weights.

    Attributes:
        family: Kind of network: "pixio", "mae", "descriptors", "keypoints", or a key of ``foreign.READERS``.
        width: Token width d.
        depth: Number of transformer blocks, or stages of a convolutional network.
        heads: Attention heads per block; must divide the width. Of keypoints, the cameras; else 1 where there are none.
        patch_size: Side in pixels of the square that one patch token stands for.
        image_size: Native image side in pixels; other sizes interpolate the positions.
        class_tokens: Number of class tokens; 0 where the family has none.
        mlp_ratio: Hidden width of each MLP as a multiple of d.
        stem: How the families built here make patches: "patch", one linear map each, as published, or "conv", small
            convolutions, whose patches overlap.
    """

    family: str = "pixio"
    width: int
    depth: int
    heads: int
    patch_size: int = 16
    image_size: int = 256
    class_tokens: int = 8
    mlp_ratio: int = 4
    stem: str = "patch"

    def __post_init__(self) -> None:
        if self.stem not in STEMS:
            raise UnknownNameError("stem", self.stem, STEMS)
        if self.stem == "conv" and (self.family != "pixio" or self.patch_size not in (4, 8, 16, 32)):
            raise SettingError(
                f"A stem of convolutions goes with family 'pixio' and patches of 4, 8, 16 or 32 pixels, not "
                f"{self.family!r} and {self.patch_size!r}."
            )
        for name, value in asdict(self).items():
            least = 0 if name == "class_tokens" and self.family not in ("pixio", "mae") else 1
            if name not in ("family", "stem") and (not isinstance(value, int) or value < least):
                raise SettingError(f"An encoder's {name} must be a whole number of at least {least}, not {value!r}.")
        if self.family == "mae" and self.class_tokens != 1:
            raise SettingError(f"MAE has one class token, not {self.class_tokens}; family 'pixio' takes any number.")
        if self.width % self.heads:
            raise SettingError(f"{self.heads} heads do not divide a width of {self.width}.")
        if self.image_size % self.patch_size:
            near = max(1, round(self.image_size / self.patch_size)) * self.patch_size
            raise SettingError(
                f"Patches of {self.patch_size} do not divide images of {self.image_size} pixels; nearest: {near}."
            )


_MAE: dict[str, Any] = {"family": "mae", "image_size": 224, "class_tokens": 1}

# Pixio's published sizes (arXiv 2512.15715; the first five of Hugging Face's facebook/pixio-*) and two small ones;
# MAE's (arXiv 2111.06377) and the same small ones.
ENCODERS: dict[str, EncoderSpec] = {
    "pixio_vit5b16": EncoderSpec(width=3072, depth=48, heads=32),
    "pixio_vit1b16": EncoderSpec(width=1536, depth=48, heads=24),
    "pixio_vith16": EncoderSpec(width=1280, depth=32, heads=16),
    "pixio_vitl16": EncoderSpec(width=1024, depth=24, heads=16),
    "pixio_vitb16": EncoderSpec(width=768, depth=12, heads=12),
    "pixio_vits16": EncoderSpec(width=384, depth=12, heads=6),
    "pixio_vitt16": EncoderSpec(width=192, depth=12, heads=3),
    "mae_vith14": EncoderSpec(width=1280, depth=32, heads=16, patch_size=14, **_MAE),
    "mae_vitl16": EncoderSpec(width=1024, depth=24, heads=16, **_MAE),
    "mae_vitb16": EncoderSpec(width=768, depth=12, heads=12, **_MAE),
    "mae_vits16": EncoderSpec(width=384, depth=12, heads=6, **_MAE),
    "mae_vitt16": EncoderSpec(width=192, depth=12, heads=3, **_MAE),
}

DESCRIPTORS = EncoderSpec(
    family="descriptors", width=WIDTH, depth=1, heads=1, patch_size=2, image_size=128, class_tokens=0
)
"""The encoder that keypoints are learnt from; see ``descriptors``."""

BUILDERS: dict[str, Callable[[EncoderSpec], Backbone]] = {
    "pixio": lambda spec: VisionTransformer(**asdict(spec)),
    "mae": lambda spec: VisionTransformer(**asdict(spec)),
    "descriptors": lambda spec: DescriptorNet(spec.width),
    "keypoints": lambda spec: KeypointNet(spec.width, spec.image_size, spec.heads),
}
"""The families that are built here, from their sizes."""


class Encoder(nn.Module):
    """A frozen encoder.

    Frozen means frozen: it stays in evaluation mode whatever ``train()`` is called around it, its parameters take no
    gradient, and its outputs carry none.

    Args:
        spec: The sizes.
        backbone: The network; built from the spec, with fresh weights, when absent.
        provenance: What is known of the weights: name, licence, training facts. Written to ``config.json``.

    Attributes:
        spec: The sizes.
        backbone: The network.
        provenance: What is known of the weights.
        source: What ``load_encoder`` reads to get it again, here; empty where it was not loaded.

    Raises:
        SettingError: If the backbone is absent and the family is not one that is built here.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        backbone: Backbone | None = None,
        *,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.provenance = dict(provenance or {})
        self.source = ""
        if backbone is None and spec.family not in BUILDERS:
            raise SettingError(f"Encoders of family {spec.family!r} are not built from sizes; load one.")
        self.backbone: Backbone = BUILDERS[spec.family](spec) if backbone is None else backbone
        self.requires_grad_(False)
        self.eval()
        self._fingerprint: str | None = None

    def train(self, mode: bool = True) -> "Encoder":
        """Stay in evaluation mode: a frozen encoder has no other."""
        del mode
        return super().train(False)

    def forward(self, images: Tensor) -> Tokens:
        """Encode images.

        Args:
            images: RGB [b 3 h w], uint8 or float in [0, 1]; any height and width that the patch size divides.

        Returns:
            Tokens after the final norm, in the encoder's dtype.

        Raises:
            ImageError: If the images are anything else.
        """
        return self.intermediate(images, blocks=[-1])[0]

    @torch.no_grad()
    def intermediate(self, images: Tensor, *, blocks: Sequence[int], norm: bool = True) -> list[Tokens]:
        """Encode images and return the tokens after each of ``blocks``.

        Args:
            images: As for ``forward``.
            blocks: Block indices, counted from 0, negative from the end; the answer keeps their order.
            norm: Apply the final norm to every block's tokens, as Pixio's dense heads want. Pixio's k-NN
                protocol reads the class tokens without it.

        Raises:
            ImageError: If the images cannot be encoded.
            SettingError: If there is no such block, or none is asked for.
        """
        depth = self.spec.depth
        wanted = [block + depth if block < 0 else block for block in blocks]
        if not wanted or not all(0 <= block < depth for block in wanted):
            raise SettingError(f"blocks={list(blocks)}: choose from 0 to {depth - 1}, or -{depth} to -1.")
        return self._tokens_after(images, wanted, norm=norm)

    def _tokens_after(self, images: Tensor, blocks: Sequence[int], *, norm: bool) -> list[Tokens]:
        """Check, normalise and encode images; gradients flow where they are not switched off."""
        if not torch.compiler.is_compiling():
            check_images(images, self.spec.patch_size)
        weight = next(self.backbone.parameters())
        pixels = normalize(images.to(weight.device), weight.dtype, self.backbone.statistics)
        return self.backbone.tokens_after(pixels, blocks, norm=norm)

    @property
    def fingerprint(self) -> str:
        """Sha-256 over sizes, pixel statistics and weights: equal if two encoders compute the same features, else not.

        Taken once, over the weights as they were loaded, so that casting the encoder does not change its name.
        """
        if self._fingerprint is None:
            facts = asdict(self.spec) | {"statistics": self.backbone.statistics}
            if facts["stem"] == "patch":
                del facts["stem"]  # so that an encoder has the name that it had before there were stems
            weights = ((name, value.float()) for name, value in sorted(self.backbone.state_dict().items()))
            self._fingerprint = weights_sha256(weights, facts=json.dumps(facts, sort_keys=True))
        return self._fingerprint

    @fingerprint.setter
    def fingerprint(self, known: str) -> None:
        """Keep the name of weights that were rounded or trained since it was taken."""
        self._fingerprint = known

    def redrawn(self, seed: int) -> "Encoder":
        """Give the same architecture with fresh weights, drawn as its own training would begin, on the CPU.

        What it reaches, training did not give. Of the sizes that are built here it is the encoder that
        ``create_encoder`` gives for this seed.
        """
        backbone = copy.deepcopy(self.backbone).cpu()
        with torch.no_grad():
            backbone.initialize(torch.Generator().manual_seed(seed))
        name = f"random weights like {self.provenance.get('name', self.spec.family)}"
        return Encoder(self.spec, backbone, provenance={"name": name, "weights": f"random, seed {seed}"})

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write ``config.json`` and ``model.safetensors`` in Hugging Face's layout of the family.

        ``transformers.AutoModel.from_pretrained(folder)`` reads it, and so does ``load_encoder(folder)``.

        Args:
            folder: Made if absent. Both files appear whole or not at all.
            dtype: Storage type; the encoder's own when absent. Half precision halves the file and rounds the
                weights, so the stored encoder has another fingerprint.
        """
        from pixio_robot.checkpoints import write_folder

        write_folder(self, Path(folder), dtype=dtype)


def create_encoder(name: str, *, seed: int | None = None, **overrides: Any) -> Encoder:
    """Build an encoder with random weights.

    Args:
        name: A row of ``ENCODERS``, such as "pixio_vitt16".
        seed: Makes the weights reproducible.
        **overrides: Sizes to change: width, depth, heads, patch_size, image_size, class_tokens, stem.

    Raises:
        UnknownNameError: If there is no such row, or no such size.
        SettingError: If the sizes do not fit together.
    """
    if name not in ENCODERS:
        raise UnknownNameError("encoder", name, ENCODERS)
    for key in overrides:
        if key not in EncoderSpec.__dataclass_fields__:
            raise UnknownNameError("size of an encoder", key, EncoderSpec.__dataclass_fields__)
    spec = replace(ENCODERS[name], **overrides)
    encoder = Encoder(spec, provenance={"name": name, "weights": f"random, seed {seed}"})
    if seed is not None:
        encoder.backbone.initialize(torch.Generator().manual_seed(seed))
    return encoder
