"""The eyes of a policy: an encoder, and the adapter from its tokens to what the policy reads.

A policy's checkpoint holds the adapter and what was trained of the encoder. The rest of the encoder is named, by the
hash of its weights before training, and read from where it lies; or stored too, if ``save_backbone`` says so.
"""

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lerobot_policy_pixio.options import PixioOptions
from lerobot_policy_pixio.trainable import TrainableEncoder
from pixio_robot.adapter import VisualFeatureAdapter
from pixio_robot.checkpoints import load_encoder
from pixio_robot.encoder import Encoder, EncoderSpec
from pixio_robot.errors import CheckpointError, SettingError, UnknownNameError
from pixio_robot.foreign import ForeignBackbone, wrap_model
from pixio_robot.images import PixelStatistics, check_images, resize
from pixio_robot.nn import no_autocast
from pixio_robot.tokens import Tokens

WAY_OUT = "Go on with train_encoder and train_blocks as the checkpoint's config.json has them, or train a new policy."


class Eyes(nn.Module):
    """Images or cached tokens of all cameras in, what a policy reads out.

    Args:
        config: The policy's settings, in which the encoder's name and licence are written down.
        dim: Width of the adapter's output.
        output: "tokens", or one "vector" for all cameras; see ``VisualFeatureAdapter``.
        encoder: The encoder, if it is in memory already; loaded when absent.

    Attributes:
        encoder: The encoder, frozen or with the trained parts that ``config.train_encoder`` names.
        adapter: The adapter, always trained.
        image_size: (height, width) in pixels at which the encoder sees.

    Raises:
        CheckpointError: If the encoder is missing, or not the one that the policy was trained with.
        SettingError: If the encoder has nothing of what should be trained, or fewer patches than should be read.
        ImageError: If its patches do not divide ``config.image_size``.
    """

    def __init__(
        self,
        config: PixioOptions,
        *,
        dim: int,
        output: Literal["tokens", "vector"],
        encoder: Encoder | None = None,
    ) -> None:
        super().__init__()
        self._config = config
        self._awaits_weights = encoder is None and config.encoder_spec is not None  # those of a checkpoint
        self.encoder = _find_encoder(config, encoder)
        _note_licence(config)
        side, patch_size = config.image_size or self.encoder.spec.image_size, self.encoder.spec.patch_size
        check_images(torch.empty(1, 3, side, side, dtype=torch.uint8, device="meta"), patch_size)
        grid = config.settle_grid(self.encoder.spec)
        if (cells := config.cached_grid) is not None and config.patches != "none" and cells > side // patch_size:
            most = side // patch_size // (cells // grid)
            raise SettingError(
                f"patches={config.patches!r} with grid={grid} needs {cells} x {cells} patches of each picture, "
                f"and {config.encoder!r} has {side // patch_size} x {side // patch_size} at {side} pixels: set grid to "
                f"{most} at most, or image_size to {cells * patch_size}."
            )
        self.image_size = (side, side)
        self.adapter = VisualFeatureAdapter(
            self.encoder.spec.width,
            dim=dim,
            cameras=len(config.image_features),
            class_tokens=self.encoder.spec.class_tokens,
            classes=config.classes,
            patches=config.patches,
            grid=grid,
            output=output,
            standardize=config.standardize,
            patch_count=(side // patch_size) ** 2,
        )
        trained = {name for name, parameter in self.encoder.named_parameters() if parameter.requires_grad}
        self._untrained = frozenset(f"encoder.{name}" for name in self.encoder.state_dict() if name not in trained)

    @property
    def left_out(self) -> frozenset[str]:
        """Names of the weights that this policy's checkpoints leave out."""
        return frozenset() if self._config.save_backbone else self._untrained

    def encode(self, views: Sequence[Tensor | Tokens]) -> list[Tokens]:
        """Run the encoder once over all live images; tokens from a cache stay as they are.

        Args:
            views: Per camera, images [... 3 h w] of any size, uint8 or float in [0, 1], or ``Tokens``. All have the
                same leading dimensions, such as [b] or [b t].

        Raises:
            ImageError: If the images are no images.
            SettingError: If there are cached tokens of an encoder that is being trained.
            CheckpointError: If the encoder's weights are missing.
        """
        live = [self.resize(view).flatten(0, -4) for view in views if not isinstance(view, Tokens)]
        if len(live) < len(views) and self._config.train_encoder != "frozen":
            raise SettingError(
                f"The batch holds cached tokens, but train_encoder={self._config.train_encoder!r} changes what the "
                "encoder says: train from images, or set train_encoder='frozen'."
            )
        if not live:
            return [view for view in views if isinstance(view, Tokens)]
        if self._awaits_weights:
            raise CheckpointError(
                f"{_trained_on(self._config)}; its weights lie in the policy's checkpoint: load that."
            )
        frames = torch.cat(live)
        if self._config.compile_encoder:
            check_images(frames, self.encoder.spec.patch_size)  # the encoder itself cannot while it is compiled
        frozen = self._config.train_encoder == "frozen"  # then it computes in its own type, as it does for a cache
        with no_autocast(next(self.encoder.parameters()).device) if frozen else nullcontext():
            tokens = self.encoder(frames)
        fresh = zip(tokens.classes.chunk(len(live)), tokens.patches.chunk(len(live)), strict=True)
        return [
            view
            if isinstance(view, Tokens)
            else Tokens(*next(fresh), tokens.grid).map(lambda x, lead=view.shape[:-3]: x.unflatten(0, lead))
            for view in views
        ]

    def forward(self, views: Sequence[Tensor | Tokens]) -> Tensor:
        """Encode and adapt: views with leading dimension [b] -> tokens [b length dim], or a vector [b dim]."""
        return self.adapter(self.encode(views))

    def resize(self, images: Tensor) -> Tensor:
        """Images [... 3 h w] at the size at which the encoder sees.

        Raises:
            ImageError: If there is no leading dimension.
        """
        if images.ndim < 4:
            check_images(images, self.encoder.spec.patch_size)  # says what is wrong with them
        return resize(images.flatten(0, -4), self.image_size).unflatten(0, images.shape[:-3])

    def check_stored(self, stored: Mapping[str, Tensor]) -> None:
        """Refuse a checkpoint, before it is loaded, of whose trained encoder something would be lost.

        Args:
            stored: What it holds of the encoder, by name.

        Raises:
            CheckpointError: If a weight has no place here, or was trained and would go on as one that is not.
        """
        here, config = self.encoder.state_dict(prefix="encoder."), self._config
        replaced = config.save_backbone and config.train_encoder != "frozen"  # a frozen one goes by its hash
        kept = frozenset() if self._awaits_weights or replaced else self._untrained
        lost = sorted(
            name
            for name, weight in stored.items()
            if name not in here or (name in kept and not _is_same(weight, here[name]))
        )
        if lost:
            raise CheckpointError(
                f"The checkpoint holds {len(lost)} weights of a trained encoder, such as {lost[0]!r}, that would be "
                f"lost with train_encoder={config.train_encoder!r}. {WAY_OUT}"
            )

    def check_loaded(self, missing: Sequence[str]) -> None:
        """Take note that a checkpoint was loaded.

        Args:
            missing: Names of the weights that it did not hold.

        Raises:
            CheckpointError: If it lacks what it should hold, or holds another encoder than its settings name.
        """
        lacking = sorted(name for name in missing if self._awaits_weights or not name.startswith("encoder."))
        if lacking:  # an encoder that does not await its weights has them as they were before training
            raise CheckpointError(
                f"The checkpoint lacks {len(lacking)} weights of the policy's eyes, such as {lacking[0]!r}: it is of "
                "other settings, or cut short."
            )
        if self._awaits_weights and self._config.train_encoder == "frozen":
            if not _are_rounded(self.encoder.parameters()) and self.encoder.fingerprint != self._config.encoder_hash:
                raise CheckpointError(
                    "The checkpoint holds an encoder that was trained, or is damaged, and train_encoder='frozen' would "
                    f"take it for the one before training, of sha256 {str(self._config.encoder_hash)[:12]}. {WAY_OUT}"
                )
            self.encoder.fingerprint = str(self._config.encoder_hash)  # taken before weights were rounded
        self._awaits_weights = False


def check_same(config: PixioOptions, encoder: Encoder) -> None:
    """Refuse an encoder that is not the one of the settings.

    Raises:
        CheckpointError: If it is another.
    """
    if encoder.fingerprint != config.encoder_hash:
        raise CheckpointError(
            f"{_trained_on(config)}; the one at hand has {encoder.fingerprint[:12]}. Point `encoder` at the weights of "
            "its training."
        )


def _is_same(stored: Tensor, here: Tensor) -> bool:
    """Whether two weights are the same in bfloat16, to which either may be rounded."""
    return torch.equal(stored.to(here).bfloat16(), here.bfloat16())


def _are_rounded(weights: Iterable[Tensor]) -> bool:
    """Whether weights are, or once were, bfloat16."""
    return all(torch.equal(weight, weight.bfloat16().to(weight.dtype)) for weight in weights)


def _trained_on(config: PixioOptions) -> str:
    return f"This policy was trained on the encoder {config.encoder!r} with sha256 {str(config.encoder_hash)[:12]}"


def _find_encoder(config: PixioOptions, given: Encoder | None) -> Encoder:
    """The encoder of a new policy, or that of an old one, checked to be the same.

    Writes down who it is: ``encoder_hash``, ``encoder_licence`` and ``encoder_spec``; and sets ``save_backbone`` where
    only the checkpoint has its weights.
    """
    if given is None and config.encoder_spec is not None:
        config.save_backbone = True  # nowhere else do its weights lie
        return _prepare(rebuild_encoder(config), config)
    encoder = _load(config) if given is None else given
    config.encoder_hash = config.encoder_hash or encoder.fingerprint
    check_same(config, encoder)
    config.encoder_licence = config.encoder_licence or encoder.provenance.get("licence")
    config.encoder_spec = describe_encoder(encoder) if config.save_backbone else None
    changed = config.train_encoder != "frozen" or config.compile_encoder
    changed = changed or next(encoder.parameters()).dtype != getattr(torch, config.encoder_dtype)
    return _prepare(copy.deepcopy(encoder) if given is not None and changed else encoder, config)


def _note_licence(config: PixioOptions) -> None:
    """Keep LeRobot, which takes apache-2.0 where nothing is said, from saying it of an encoder of another licence."""
    holds_weights = config.save_backbone or config.train_encoder in ("last_blocks", "full")
    if holds_weights and config.license is None and str(config.encoder_licence).lower() != "apache-2.0":
        config.license = "other"


def _load(config: PixioOptions) -> Encoder:
    try:
        return load_encoder(config.encoder)
    except (CheckpointError, UnknownNameError) as error:
        if config.encoder_hash is None:
            raise
        raise CheckpointError(
            f"{_trained_on(config)}, which cannot be read: {error} Set `encoder` (--policy.encoder=...) to where those "
            "weights lie now; only with save_backbone=true does a checkpoint hold them."
        ) from error


def _prepare(encoder: Encoder, config: PixioOptions) -> Encoder:
    """Cast, choose what is trained, compile."""
    encoder = encoder.to(dtype=getattr(torch, config.encoder_dtype))
    if config.train_encoder != "frozen":
        encoder = TrainableEncoder(encoder, config, fingerprint=config.encoder_hash)
    if config.compile_encoder:
        encoder.compile()
    return encoder


def describe_encoder(encoder: Encoder) -> dict[str, Any]:
    """Everything but the weights, in JSON's types; ``rebuild_encoder`` reads it."""
    facts: dict[str, Any] = asdict(encoder.spec)
    if isinstance(encoder.backbone, ForeignBackbone):
        facts["model"] = json.loads(encoder.backbone.model.config.to_json_string())
        facts["pooler"] = getattr(encoder.backbone.model, "pooler", None) is not None
        facts["statistics"] = [list(row) for row in encoder.backbone.statistics]
    return facts


def rebuild_encoder(config: PixioOptions) -> Encoder:
    """Build the encoder that ``config.encoder_spec`` describes, with fresh weights."""
    facts = dict(config.encoder_spec or {})
    provenance = {"name": config.encoder, "licence": config.encoder_licence}
    if "model" not in facts:
        return Encoder(EncoderSpec(**facts), provenance=provenance)
    from transformers import AutoConfig, AutoModel

    settings = dict(facts["model"])
    model = AutoModel.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings))
    if not facts.get("pooler", True):
        model.pooler = None
    encoder = wrap_model(model.float(), provenance=provenance)
    mean, std = facts["statistics"]
    encoder.backbone.statistics = PixelStatistics(tuple(mean), tuple(std))
    return encoder
