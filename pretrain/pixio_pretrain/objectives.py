"""The registry of pre-training objectives: a row here is all that an objective's file needs to be found."""

from dataclasses import fields, replace
from typing import Any

import torch

from pixio_pretrain.pixio import Pixio
from pixio_robot.encoder import ENCODERS, EncoderSpec
from pixio_robot.errors import UnknownNameError

OBJECTIVES: dict[str, type[Pixio]] = {"pixio": Pixio}


def create_objective(name: str, *, encoder: str = "pixio_vitt16", seed: int | None = None, **settings: Any) -> Pixio:
    """Build an objective with random weights.

    Args:
        name: A row of ``OBJECTIVES``.
        encoder: A row of ``ENCODERS``, whose sizes the settings may change.
        seed: Makes the weights reproducible.
        **settings: Sizes of the encoder (width, depth, heads, patch_size, image_size, class_tokens, mlp_ratio) and
            settings of the objective (decoder_width, decoder_depth, decoder_heads, mask_block, mask_ratio, drop_path).

    Raises:
        UnknownNameError: If there is no such objective, encoder or setting; it carries the nearest name.
        SettingError: If the settings do not fit together.
    """
    if name not in OBJECTIVES:
        raise UnknownNameError("objective", name, OBJECTIVES)
    if encoder not in ENCODERS:
        raise UnknownNameError("encoder", encoder, ENCODERS)
    objective = OBJECTIVES[name]
    sizes = {field.name for field in fields(EncoderSpec)}
    own = {field.name for field in fields(objective.Settings)} - {"encoder"}
    for key in settings:
        if key not in sizes | own:
            raise UnknownNameError("setting of an objective", key, sizes | own)
    spec = replace(ENCODERS[encoder], **{key: value for key, value in settings.items() if key in sizes})
    rest = {key: value for key, value in settings.items() if key in own}
    model = objective(objective.Settings(encoder=spec, **rest))
    if seed is not None:
        model.initialize(torch.Generator().manual_seed(seed))
    return model
