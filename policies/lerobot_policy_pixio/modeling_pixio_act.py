"""``pixio_act``: LeRobot's ACT with a pre-trained encoder for eyes.

ACT's forward is LeRobot's, untouched. It asks three of its attributes for what it sees: ``backbone`` for a feature map
per camera, ``encoder_cam_feat_pos_embed`` for positions and ``encoder_img_feat_input_proj`` for a projection. Here the
adapter has done all three before ACT starts, for all cameras at once, so the attributes only pass its tokens on.
"""

from typing import Any

import torch
from einops import rearrange
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.utils.constants import OBS_IMAGES, OBS_STATE
from torch import Tensor, nn

from lerobot_policy_pixio.configuration_pixio_act import PixioACTConfig
from lerobot_policy_pixio.modeling_pixio import Batch, PixioPolicy, check_finite
from pixio_robot.encoder import Encoder


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


class PixioACTPolicy(PixioPolicy, ACTPolicy):
    """ACT on the class tokens and pooled patches of a pre-trained encoder.

    In a batch, each camera holds either live images [b 3 h w], uint8 or float in [0, 1], or their ``Tokens`` from a
    feature cache. After the encoder both take the same path.

    Args:
        config: The settings, with input and output features.
        encoder: The encoder that ``config.encoder`` names, if it is in memory already; loaded when absent.
        dataset_meta: LeRobot's metadata of the data set, whose tasks a task-conditioned policy learns.
        **kwargs: What else LeRobot passes to every policy.

    Raises:
        CheckpointError: If the encoder is missing, or not the one that the policy was trained with.
        DataError: If the inputs cannot carry this policy.
        SettingError: If the settings do not fit the encoder or the data set.
    """

    config_class = PixioACTConfig  # type: ignore[assignment]
    name = "pixio_act"  # type: ignore[assignment]
    config: PixioACTConfig  # type: ignore[assignment]

    def __init__(
        self, config: PixioACTConfig, *, encoder: Encoder | None = None, dataset_meta: Any = None, **kwargs: Any
    ) -> None:
        super().__init__(config, **kwargs)
        self._equip(dim=config.dim_model, output="tokens", encoder=encoder, dataset_meta=dataset_meta)
        if self.eyes is not None:
            self.model.register_module("backbone", FeatureMap())
            self.model.register_module("encoder_cam_feat_pos_embed", NoPosition())
            self.model.register_module("encoder_img_feat_input_proj", nn.Identity())

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Training loss.

        Raises:
            DataError: If the batch lacks a camera or its task, or is of another robot.
            SettingError: If the loss is not finite.
        """
        loss, parts = super().forward(self._see(batch))
        check_finite(loss, "loss", self.config)
        return loss, parts

    @torch.no_grad()
    def predict_action_chunk(self, batch: Batch) -> Tensor:  # type: ignore[override]
        """Normalised actions [b chunk a], float32 whatever the head computes in.

        Raises:
            DataError: If the batch lacks a camera or its task, or is of another robot.
        """
        return super().predict_action_chunk(self._see(batch)).float()

    def _see(self, batch: Batch) -> Batch:
        """Replace each camera's images or tokens by its part of the adapter's output, as a map [b dim 1 n]."""
        self._check_widths(batch)
        views = self._views(batch)
        batch = self._tell_task(batch)
        if self.eyes is None:
            return batch | {OBS_IMAGES: [batch[OBS_STATE]]}  # ACT reads the batch size here and no more
        maps = rearrange(self.eyes(views), "b (v n) d -> v b d 1 n", v=len(views))
        return batch | dict(zip(self.config.image_features, maps, strict=True))
