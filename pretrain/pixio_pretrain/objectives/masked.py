"""Masked autoencoding: rebuild hidden blocks of an image from a few visible ones.

Pixio (arXiv 2512.15715) changes MAE (arXiv 2111.06377) in this: blocks of patches are hidden rather than single
patches, the decoder is deep, there are several class tokens, positions are learned, and crops are not mirrored. All
are settings; ``mae.py`` has the other values. Positions follow the encoder's family.

Three more settings are off unless asked for: they are cures for small things, which masked images alone teach badly.
The loss may count visible patches, too; the encoder may begin with convolutions, so that features are hidden rather
than pixels (Masked World Models, arXiv 2206.14244); and an image may come with a companion, one of a later moment (as
in SiamMAE, arXiv 2305.14344, and STP, arXiv 2403.05304) or of another camera (MV-MWM, arXiv 2302.02408), of which
nearly everything is hidden, and which the decoder rebuilds from both.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import NamedTuple, cast

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from pixio_pretrain.data.companions import Companion, accompany, check_companion
from pixio_pretrain.data.samples import Batch, BatchMaker, SampleMaker
from pixio_pretrain.data.source import Source
from pixio_pretrain.objectives.base import EncoderConfig, Objective, ObjectiveConfig
from pixio_pretrain.objectives.initial import take_over
from pixio_pretrain.objectives.masking import (
    View,
    check_mask,
    count_visible,
    crop_all_with_noise,
    crop_with_noise,
    draw_view,
    encode_visible,
)
from pixio_pretrain.objectives.patches import Reconstruction, deviation, patchify, standardize, unpatchify
from pixio_robot.encoder import Encoder
from pixio_robot.errors import SettingError
from pixio_robot.images import denormalize, normalize
from pixio_robot.nn import NORM_EPS, Block, VisionTransformer, initialize_blocks, sincos_positions
from pixio_robot.tokens import take


@dataclass(kw_only=True)
class PixioConfig(EncoderConfig, ObjectiveConfig):
    """Settings of Pixio; the defaults are those of its own pre-training.

    Attributes:
        decoder_width: Token width of the decoder.
        decoder_depth: Blocks of the decoder.
        decoder_heads: Attention heads of the decoder; must divide its width.
        mask_block: Side of the hidden blocks, in patches; must divide the grid. 1 is MAE's masking.
        mask_ratio: Share of the blocks that is hidden.
        mirror: Flip half of the crops left to right.
        initial_weights: What ``load_encoder`` reads, and whose weights the encoder begins with; the decoder begins
            fresh, as all does for None. The sizes must be that encoder's, but for that of the images.
        visible_loss: Weight of a visible patch in the loss, where a hidden one has 1.
        companion: What comes with each image: "none"; a "later" one of the same camera; or that of another "camera" at
            the same moment.
        companion_ratio: Share of the companion's blocks that is hidden.
        companion_reach: The most moments between an image and a later companion.
    """

    name: str = "pixio"
    decoder_width: int = 512
    decoder_depth: int = 32
    decoder_heads: int = 16
    mask_block: int = 4
    mask_ratio: float = 0.75
    mirror: bool = False
    initial_weights: str | None = None
    visible_loss: float = 0.0
    companion: str = "none"
    companion_ratio: float = 0.95
    companion_reach: int = 4

    def build(self) -> "MaskedAutoencoder":
        """Build the model; errors as for every objective."""
        if min(self.decoder_width, self.decoder_depth, self.decoder_heads) < 1:
            raise SettingError("decoder_width, decoder_depth and decoder_heads must be at least 1.")
        if self.decoder_width % self.decoder_heads:
            raise SettingError(f"{self.decoder_heads} heads do not divide a decoder width of {self.decoder_width}.")
        if self.visible_loss < 0:
            raise SettingError(f"visible_loss must be at least 0, not {self.visible_loss}.")
        check_companion(self.companion, self.companion_reach)
        spec = self.spec()
        grid = spec.image_size // spec.patch_size
        check_mask(grid, self.mask_block, self.mask_ratio)
        if self.companion != "none":
            check_mask(grid, self.mask_block, self.companion_ratio, setting="companion_ratio")
        return MaskedAutoencoder(self)


class MaskedOutput(NamedTuple):
    """What a masked objective says about a batch.

    Attributes:
        loss: Scalar, float32: mean squared error over the hidden patches, each normalised by itself; and over visible
            ones, as far as ``visible_loss`` weighs them.
        prediction: [b n p*p*3], normalised pixels of every patch, ordered (row, column, channel) inside a patch; the
            companion's patches follow the image's.
        mask: [b n], float32, 1 where hidden.
    """

    loss: Tensor
    prediction: Tensor
    mask: Tensor


class MaskedAutoencoder(Objective):
    """An encoder with the decoder that trains it.

    Args:
        config: All settings.

    Attributes:
        config: All settings.
        spec: Sizes of the encoder.
        grid: Patches per image side.
        mask_blocks: Blocks per image.
        visible_patches: Patches per image that the encoder sees.
    """

    picture_meaning = (
        "Seen, rebuilt, true (hidden patches carry their true mean and contrast, as the loss is blind to both):"
    )

    def __init__(self, config: PixioConfig) -> None:
        super().__init__()
        self.config: PixioConfig = config
        counted = f"hidden and, by {config.visible_loss:g}, visible" if config.visible_loss else "hidden"
        self.loss_meaning = f"squared error on {counted} patches, each normalised by its own mean and deviation"
        self.spec = spec = config.spec()
        self.grid = spec.image_size // spec.patch_size
        self.mask_blocks = (self.grid // config.mask_block) ** 2
        self.visible_patches = count_visible(self.mask_blocks, config.mask_ratio) * config.mask_block**2
        width = config.decoder_width
        self.vit = VisionTransformer(**asdict(spec), drop_path=config.drop_path)
        self.decoder_embed = nn.Linear(spec.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        positions = torch.zeros(1, spec.class_tokens + self.grid**2, width)
        self.decoder_pos_embed = nn.Parameter(positions, requires_grad=spec.family != "mae")
        if config.companion != "none":
            self.decoder_view_embed = nn.Parameter(torch.zeros(2, 1, width))
        self.decoder_blocks = nn.ModuleList(Block(width, config.decoder_heads) for _ in range(config.decoder_depth))
        self.decoder_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.decoder_pred = nn.Linear(width, spec.patch_size**2 * 3)
        self.initialize()

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights for encoder and decoder."""
        initialize_blocks(self, generator)
        self.vit.initialize(generator)
        nn.init.normal_(self.mask_token, std=0.02, generator=generator)
        if self.spec.family == "mae":
            self.decoder_pos_embed.copy_(sincos_positions(self.config.decoder_width, self.grid, self.spec.class_tokens))
        else:
            nn.init.normal_(self.decoder_pos_embed, std=0.02, generator=generator)
        if self.config.companion != "none":
            nn.init.normal_(self.decoder_view_embed, std=0.02, generator=generator)

    def begin(self) -> dict[str, str]:
        """Take over ``config.initial_weights``; errors as for ``take_over``."""
        name = self.config.initial_weights
        return {} if name is None else {"initial_weights": take_over(self.vit, self.spec, name)}

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.spec.image_size

    @property
    def encoders(self) -> dict[str, Encoder]:
        """A frozen copy of the encoder as it is now."""
        name = {"name": self.config.encoder}
        return {"encoder": Encoder(self.spec, copy.deepcopy(self.vit), provenance=name)}

    def samples(self, *, crop_scale: float) -> SampleMaker:
        """Crops, and the noise that decides which blocks are hidden."""
        return crop_with_noise(
            self.image_size,
            blocks=self.mask_blocks,
            crop_scale=crop_scale,
            mirror=self.config.mirror,
            companion=self.config.companion != "none",
        )

    def batches(self, *, crop_scale: float) -> BatchMaker:
        """Crops and noise, where the images lie."""
        return crop_all_with_noise(
            self.image_size, blocks=self.mask_blocks, crop_scale=crop_scale, mirror=self.config.mirror
        )

    def prepare(self, source: Source) -> Source:
        """Give each image its companion; errors as for ``accompany``."""
        return accompany(source, cast(Companion, self.config.companion), reach=self.config.companion_reach)

    def forward(
        self,
        images: Tensor,
        *,
        noise: Tensor | None = None,
        companion: Tensor | None = None,
        companion_noise: Tensor | None = None,
    ) -> MaskedOutput:
        """Hide blocks, rebuild them, and measure the error.

        Args:
            images: RGB [b 3 h w] of the native size, uint8 or float in [0, 1].
            noise: [b mask_blocks], row-major over the grid of blocks; the smallest entries stay visible. Uniform
                when absent.
            companion: Other pictures of the same scenes, like ``images``; only where ``config.companion`` is not
                "none", and even there images may come alone.
            companion_noise: Like ``noise``.

        Raises:
            ImageError: If the images are of another shape, size or range.
            SettingError: If the noise is of another shape, or companions come to an objective without.
        """
        views = self.views(images, noise=noise, companion=companion, companion_noise=companion_noise)
        latents = [self.encode(view.pixels, view.order[:, : view.visible]) for view in views]
        prediction = self.decode(latents, [view.order for view in views])
        targets = torch.cat([self.targets(view.pixels) for view in views], dim=1)
        mask = torch.cat([view.mask() for view in views], dim=1)
        error = (prediction.float() - targets).square().mean(dim=-1)  # b n
        return MaskedOutput(self.average(error, mask), prediction, mask)

    def average(self, error: Tensor, mask: Tensor) -> Tensor:
        """Average the errors of patches, of which ``mask`` says which were hidden, as the loss weighs them."""
        weight = mask + self.config.visible_loss * (1 - mask)
        return (error * weight).sum() / weight.sum()

    def views(
        self,
        images: Tensor,
        *,
        noise: Tensor | None = None,
        companion: Tensor | None = None,
        companion_noise: Tensor | None = None,
    ) -> list[View]:
        """Say what is seen of a batch: of the images, and of their companions where they come; as for ``forward``."""
        if companion is not None and self.config.companion == "none":
            raise SettingError("This objective has no companions: choose companion=later or companion=camera.")
        see = partial(draw_view, spec=self.spec, block=self.config.mask_block)
        device = self.mask_token.device
        views = [see(images.to(device), noise, ratio=self.config.mask_ratio)]
        if companion is not None:
            views.append(see(companion.to(device), companion_noise, ratio=self.config.companion_ratio))
        return views

    def encode(self, pixels: Tensor, visible: Tensor) -> Tensor:
        """Encode the class tokens and the visible patches only; see ``encode_visible``."""
        return encode_visible(self.vit, pixels, visible)

    def decode(self, latents: Sequence[Tensor], orders: Sequence[Tensor]) -> Tensor:
        """Predict the normalised pixels of every patch, from all views together.

        Args:
            latents: Of each view, encoder tokens [b c+k d], patches in the order of its first k.
            orders: Of each view, indices [b n] of all patches, visible ones first.

        Returns:
            [b n p*p*3], row-major, one view after the other.
        """
        filled = [self._fill(latent, order) for latent, order in zip(latents, orders, strict=True)]  # each b c+n d
        if len(filled) > 1:
            filled = [x + embed for x, embed in zip(filled, self.decoder_view_embed, strict=True)]
        x = torch.cat(filled, dim=1)
        for block in self.decoder_blocks:
            x = block(x)
        patches = [part[:, self.spec.class_tokens :] for part in x.chunk(len(filled), dim=1)]
        return self.decoder_pred(self.decoder_norm(torch.cat(patches, dim=1)))

    def targets(self, pixels: Tensor) -> Tensor:
        """Cut normalised images [b 3 h w] into patches [b n p*p*3], each of zero mean and unit deviation."""
        return standardize(patchify(pixels, self.spec.patch_size))

    @torch.no_grad()
    def reconstruct(self, images: Tensor, **others: Tensor) -> Reconstruction:
        """Show what the model makes of a batch; arguments and errors as for ``forward``."""
        _, prediction, mask = self(images, **others)
        pictures = [images, others["companion"]] if "companion" in others else [images]
        pixels = normalize(torch.cat(pictures, dim=2).to(mask.device), torch.float32)  # one below the other
        patches, hidden = patchify(pixels, self.spec.patch_size), mask.unsqueeze(-1).bool()
        predicted = prediction.float() * deviation(patches) + patches.mean(dim=-1, keepdim=True)
        masked = denormalize(unpatchify(patches * ~hidden, columns=self.grid))  # zero is ImageNet's mean colour, a grey
        rebuilt = denormalize(unpatchify(torch.where(hidden, predicted, patches), columns=self.grid))
        return Reconstruction(masked, rebuilt, denormalize(pixels))

    @torch.no_grad()
    def baselines(self, train: Iterable[Batch], held_out: Iterable[Batch]) -> dict[str, float]:
        """Held-out losses of two predictions that look at no visible patch.

        Returns:
            "mean training patch at each place": averaged over the training crops; "each patch's own mean colour":
            flat patches of the right colour, which no model is told.
        """
        mean = torch.zeros((), device=self.mask_token.device)
        for number, batch in enumerate(train, start=1):
            patches = torch.stack([self.targets(view.pixels) for view in self.views(**batch)]).mean(dim=1)  # v n ppc
            mean = mean + (patches - mean) / number
        guesses = {"mean training patch at each place": mean, "each patch's own mean colour": torch.zeros_like(mean)}
        totals, count = dict.fromkeys(guesses, 0.0), 0
        for batch in held_out:
            views = self.views(**batch)
            mask = torch.stack([view.mask() for view in views])  # v b n
            targets = torch.stack([self.targets(view.pixels) for view in views])
            for name, guess in guesses.items():
                error = (targets - guess.unsqueeze(-3)).square().mean(dim=-1)  # v b n
                totals[name] += self.average(error, mask).item() * mask.shape[1]
            count += mask.shape[1]
        return {name: total / count for name, total in totals.items()}

    def picture(self, batch: Batch) -> Image.Image:
        """Three rows: what the encoder saw, what the decoder made of it, the truth."""
        pictures = self.reconstruct(**batch)
        rows = [rearrange(row.cpu().numpy(), "b c h w -> h (b w) c") for row in pictures]
        return Image.fromarray(np.concatenate(rows))

    def _fill(self, latent: Tensor, order: Tensor) -> Tensor:
        """Put encoder tokens [b c+k d] in their places among mask tokens [b c+n d], with their positions."""
        tokens = self.decoder_embed(latent)
        classes, patches = tokens.tensor_split([self.spec.class_tokens], dim=1)
        hidden = self.mask_token.to(tokens.dtype).expand(len(tokens), order.shape[1] - patches.shape[1], -1)
        patches = take(torch.cat([patches, hidden], dim=1), order.argsort(dim=1))  # b n d, in place
        return torch.cat([classes, patches], dim=1) + self.decoder_pos_embed
