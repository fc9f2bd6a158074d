"""``pixio_diffusion``: LeRobot's Diffusion Policy with a pre-trained encoder for eyes.

Diffusion's forward is LeRobot's, untouched. It stacks the cameras' images, keeps those of earlier steps in a queue, and
hands all of a batch to its ``rgb_encoder`` at once, when a new chunk of actions is due. Only that attribute is swapped.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from einops import rearrange
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
from lerobot.utils.constants import OBS_IMAGES, OBS_STATE
from torch import Tensor, nn

from lerobot_policy_pixio.configuration_pixio_diffusion import PixioDiffusionConfig
from lerobot_policy_pixio.modeling_pixio import Batch, PixioPolicy, check_finite
from lerobot_policy_pixio.vision import Eyes
from pixio_robot.encoder import Encoder
from pixio_robot.errors import SettingError
from pixio_robot.tokens import Tokens


class Look(nn.Module):
    """Diffusion's image encoder: [(b v) c h w] -> [(b v) feature_dim], where b counts samples and their steps.

    The eyes are the policy's, not a part of this module: Diffusion draws its noise in the type of its first parameter,
    which is the U-Net's that way, whatever the encoder computes in.

    Args:
        eyes: One vector for all cameras, of which each camera is given its part.
        feature_dim: The part's width.
    """

    def __init__(self, eyes: Eyes, feature_dim: int) -> None:
        super().__init__()
        self._look: Callable[[Sequence[Tensor | Tokens]], Tensor] = eyes.__call__  # a method, and so no submodule
        self.cameras, self.class_tokens, self.feature_dim = eyes.adapter.cameras, eyes.adapter.class_tokens, feature_dim

    def forward(self, images: Tensor) -> Tensor:
        """Look at live images, or at packed tokens."""
        views = rearrange(images, "(b v) c h w -> v b c h w", v=self.cameras).unbind(0)
        if images.shape[1] == 1:
            views = [unpack(view, self.class_tokens) for view in views]
        return rearrange(self._look(views), "b (v d) -> (b v) d", v=self.cameras)


class PixioDiffusionPolicy(PixioPolicy, DiffusionPolicy):
    """Diffusion Policy on the class tokens and pooled patches of a pre-trained encoder.

    In a batch, each camera holds either live images [b t 3 h w], uint8 or float in [0, 1], or their ``Tokens``
    [b t n d] from a feature cache. After the encoder both take the same path. ``select_action`` takes the present
    alone, [b ...].

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

    config_class = PixioDiffusionConfig  # type: ignore[assignment]
    name = "pixio_diffusion"  # type: ignore[assignment]
    config: PixioDiffusionConfig  # type: ignore[assignment]

    def __init__(
        self, config: PixioDiffusionConfig, *, encoder: Encoder | None = None, dataset_meta: Any = None, **kwargs: Any
    ) -> None:
        super().__init__(config, **kwargs)
        dim = config.feature_dim * len(config.image_features)
        self._equip(dim=dim, output="vector", encoder=encoder, dataset_meta=dataset_meta)
        if self.eyes is not None:
            look = Look(self.eyes, config.feature_dim)
            assert self.diffusion.rgb_encoder.feature_dim == look.feature_dim, "LeRobot sized the U-Net by another rule"
            self.diffusion.register_module("rgb_encoder", look)

    def forward(self, batch: Batch) -> tuple[Tensor, None]:
        """Training loss.

        Raises:
            DataError: If the batch lacks a camera or its task, or is of another robot.
            SettingError: If the loss is not finite.
        """
        loss, _ = super().forward(self._see(batch))
        check_finite(loss, "loss", self.config)
        return loss, None

    @torch.no_grad()
    def select_action(self, batch: Batch, noise: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """The normalised action [b a] of now; plans a new chunk when the last one is spent.

        Raises:
            DataError: If the batch lacks a camera or its task, or is of another robot.
        """
        return super().select_action(self._see(batch), noise=noise)

    @torch.no_grad()
    def predict_action_chunk(self, batch: Batch, noise: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Normalised actions [b n_action_steps a], float32 whatever the head computes in.

        As in LeRobot, once ``select_action`` has seen something, it is that which is planned from; else the batch.

        Raises:
            DataError: If the batch lacks a camera or its task, or is of another robot.
        """
        remembers = any((self._queues or {}).values())
        return super().predict_action_chunk(batch if remembers else self._see(batch), noise=noise).float()

    def _see(self, batch: Batch) -> Batch:
        """Bring all cameras to one shape, which LeRobot can stack: images of one size, or tokens packed as images."""
        self._check_widths(batch)
        views = self._views(batch)
        batch = self._tell_task(batch)
        if self.eyes is None:
            return batch | {OBS_IMAGES: batch[OBS_STATE]}  # Diffusion looks whether it is there and no more
        if any(isinstance(view, Tokens) for view in views):
            images = [pack(tokens) for tokens in self.eyes.encode(views)]
        else:
            images = [self.eyes.resize(view) for view in views if isinstance(view, Tensor)]
        return batch | dict(zip(self.config.image_features, images, strict=True))


def pack(tokens: Tokens) -> Tensor:
    """Tokens [... n d] -> a grey "image" [... 1 c+n d], class tokens first, in float32.

    Raises:
        SettingError: If the grid is not square, which ``unpack`` takes it to be.
    """
    if tokens.grid[0] != tokens.grid[1]:
        raise SettingError(f"Cached tokens must be of square images; the grid of these is {tokens.grid}.")
    return torch.cat([tokens.classes, tokens.patches], dim=-2).float().unsqueeze(-3)


def unpack(image: Tensor, class_tokens: int) -> Tokens:
    """Undo ``pack``."""
    classes, patches = image.squeeze(-3).tensor_split([class_tokens], dim=-2)
    side = round(patches.shape[-2] ** 0.5)
    return Tokens(classes, patches, (side, side))
