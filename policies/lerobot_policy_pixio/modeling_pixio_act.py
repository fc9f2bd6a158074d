"""``pixio_act``: LeRobot's ACT with a frozen Pixio encoder for eyes.

ACT's forward is LeRobot's, untouched. It asks three of its attributes for what it sees: ``backbone`` for a feature map
per camera, ``encoder_cam_feat_pos_embed`` for positions and ``encoder_img_feat_input_proj`` for a projection. Here the
adapter has done all three before ACT starts, for all cameras at once, so the attributes only pass its tokens on.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, cast

import torch
from einops import rearrange
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.utils.constants import OBS_IMAGES, OBS_STATE
from torch import Tensor, nn

from lerobot_policy_pixio.configuration_pixio_act import PixioACTConfig
from pixio_robot.adapter import VisualFeatureAdapter
from pixio_robot.checkpoints import load_encoder
from pixio_robot.encoder import Encoder, EncoderSpec
from pixio_robot.errors import CheckpointError, DataError, SettingError
from pixio_robot.images import resize
from pixio_robot.tokens import Tokens

Batch = dict[str, Any]  # of tensors, and of Tokens for cameras whose frames were encoded before


class FeatureMap(nn.Module):
    """A backbone whose work is done: [b dim 1 n] -> the same, under the key that ACT reads."""

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """Pass the tokens on."""
        return {"feature_map": tokens}


class NoPosition(nn.Module):
    """Zeros [1 dim 1 n]: the adapter's embeddings say already where each token comes from."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Return a position of zero for every token."""
        return torch.zeros_like(tokens[:1])


class PixioACTPolicy(ACTPolicy):
    """ACT on the class tokens and pooled patches of a frozen encoder.

    In a batch, each camera holds either live images [b 3 h w], uint8 or float in [0, 1], or their ``Tokens`` from a
    feature cache. After the encoder both take the same path.

    Args:
        config: The settings, with input and output features.
        encoder: The encoder that ``config.encoder`` names, if it is in memory already; loaded when absent.
        **kwargs: What LeRobot passes to every policy.

    Raises:
        CheckpointError: If the encoder is not the one that the policy was trained with.
        DataError: If the inputs cannot carry this policy.
    """

    config_class = PixioACTConfig  # type: ignore[assignment]
    name = "pixio_act"  # type: ignore[assignment]
    config: PixioACTConfig

    def __init__(self, config: PixioACTConfig, *, encoder: Encoder | None = None, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        if config.blind:
            return
        self.encoder = _find_encoder(config, encoder)
        self.adapter = VisualFeatureAdapter(
            self.encoder.spec.width,
            dim=config.dim_model,
            cameras=len(config.image_features),
            class_tokens=self.encoder.spec.class_tokens,
            classes=config.classes,
            patches=config.patches,
            grid=config.grid,
        )
        self.model.register_module("backbone", FeatureMap())
        self.model.register_module("encoder_cam_feat_pos_embed", NoPosition())
        self.model.register_module("encoder_img_feat_input_proj", nn.Identity())
        if not config.save_backbone:
            self.register_state_dict_post_hook(_leave_encoder_out)
        self.register_load_state_dict_post_hook(_do_not_miss_encoder)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Training loss.

        Raises:
            DataError: If the batch lacks a camera.
            SettingError: If the loss is not finite.
        """
        loss, parts = super().forward(self._see(batch))
        if not torch.isfinite(loss):
            raise SettingError(
                f"The loss became {loss.item()}: training diverged. Lower optimizer_lr (now "
                f"{self.config.optimizer_lr:g}), or look for NaN in the states and actions."
            )
        return loss, parts

    @torch.no_grad()
    def predict_action_chunk(self, batch: Batch) -> Tensor:  # type: ignore[override]
        """Normalised actions [b chunk a].

        Raises:
            DataError: If the batch lacks a camera.
        """
        return super().predict_action_chunk(self._see(batch))

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels at which the encoder sees."""
        side = self.config.image_size or self.encoder.spec.image_size
        return side, side

    def _see(self, batch: Batch) -> Batch:
        """Replace each camera's images or tokens by its part of the adapter's output, as a map [b dim 1 n]."""
        cameras = list(self.config.image_features)
        if not cameras:
            return batch | {
                OBS_IMAGES: [batch[OBS_STATE]]
            }  # ACT reads the batch size here and, without cameras, no more
        missing = [camera for camera in cameras if camera not in batch]
        if missing:
            there = [key for key in batch if key.startswith("observation.image")]
            raise DataError(f"The policy looks through {missing}, but the batch has the cameras {there}.")
        tokens = self.adapter(self._encode([batch[camera] for camera in cameras]))
        maps = rearrange(tokens, "b (v n) d -> v b d 1 n", v=len(cameras))
        return batch | dict(zip(cameras, maps, strict=True))

    def _encode(self, views: Sequence[Tensor | Tokens]) -> list[Tokens]:
        """Run the encoder once over all live cameras."""
        live = [resize(view, self.image_size) for view in views if not isinstance(view, Tokens)]
        if not live:
            return [view for view in views if isinstance(view, Tokens)]
        _check_same(self.config, self.encoder)
        tokens = self.encoder(torch.cat(live))
        fresh = iter(
            Tokens(classes, patches, tokens.grid)
            for classes, patches in zip(tokens.classes.chunk(len(live)), tokens.patches.chunk(len(live)), strict=True)
        )
        return [view if isinstance(view, Tokens) else next(fresh) for view in views]


def _find_encoder(config: PixioACTConfig, given: Encoder | None) -> Encoder:
    """Get the encoder of a new policy and note who it is, or that of an old one and check that it is the same."""
    if given is None and config.encoder_spec is not None:
        return Encoder(
            EncoderSpec(**cast("Any", config.encoder_spec))
        )  # the checkpoint will fill it; its first use checks that
    encoder = given or load_encoder(config.encoder)
    config.encoder_hash = config.encoder_hash or encoder.fingerprint
    config.encoder_spec = asdict(encoder.spec) if config.save_backbone else None
    _check_same(config, encoder)
    return encoder


def _check_same(config: PixioACTConfig, encoder: Encoder) -> None:
    if encoder.fingerprint != config.encoder_hash:
        raise CheckpointError(
            f"This policy was trained on the encoder {config.encoder!r} with sha256 {str(config.encoder_hash)[:12]}; "
            f"the one at hand has {encoder.fingerprint[:12]}. Point `encoder` at the weights of its training."
        )


def _leave_encoder_out(_policy: PixioACTPolicy, state: dict[str, Tensor], prefix: str, _metadata: Any) -> None:
    for key in [key for key in state if key.startswith(f"{prefix}encoder.")]:
        del state[key]


def _do_not_miss_encoder(_policy: PixioACTPolicy, keys: Any) -> None:
    keys.missing_keys[:] = [key for key in keys.missing_keys if not key.startswith("encoder.")]
