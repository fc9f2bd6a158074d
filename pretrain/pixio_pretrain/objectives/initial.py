"""Continued pre-training: a training that begins with an encoder's weights in place of fresh ones."""

from dataclasses import asdict

import torch

from pixio_robot import load_encoder
from pixio_robot.encoder import ENCODERS, EncoderSpec
from pixio_robot.errors import SettingError
from pixio_robot.nn import VisionTransformer, resize_positions


@torch.no_grad()
def take_over(vit: VisionTransformer, spec: EncoderSpec, name: str) -> str:
    """Copy an encoder's weights; learned positions are resampled where the native sizes differ.

    Args:
        vit: Comes to hold them.
        spec: Its sizes.
        name: What ``load_encoder`` reads.

    Returns:
        The fingerprint of the encoder.

    Raises:
        CheckpointError: As ``load_encoder``.
        SettingError: If the encoder has other sizes than ``vit``.
    """
    encoder = load_encoder(name)
    _refuse_other_sizes(name, theirs=encoder.spec, ours=spec)
    state = encoder.backbone.state_dict()
    if spec.family == "mae":
        state["pos_embed"] = vit.pos_embed  # fixed, and known for every size
    else:
        places, grid = state["pos_embed"], spec.image_size // spec.patch_size
        classes, patches = places.tensor_split([spec.class_tokens], dim=1)
        state["pos_embed"] = torch.cat([classes, resize_positions(patches, (grid, grid))], dim=1)
    vit.load_state_dict(state)
    return encoder.fingerprint


def _refuse_other_sizes(name: str, *, theirs: EncoderSpec, ours: EncoderSpec) -> None:
    def sizes(spec: EncoderSpec) -> dict[str, object]:
        return {key: value for key, value in asdict(spec).items() if key != "image_size"}

    differing = {key: value for key, value in sizes(theirs).items() if value != sizes(ours)[key]}
    if not differing:
        return
    rows = [row for row, spec in ENCODERS.items() if sizes(spec) == sizes(theirs)]
    if not rows and theirs.family not in ("pixio", "mae"):
        raise SettingError(
            f"objective.initial_weights={name}: an encoder of family {theirs.family!r} cannot be trained on here; "
            "those of Pixio's and MAE's can."
        )
    listed = ", ".join(f"{key} {value}, not {sizes(ours)[key]}" for key, value in differing.items())
    settings = [f"objective.{key}={value}" for key, value in differing.items() if key != "family"]
    wanted = f"objective.encoder={rows[0]}" if rows else " ".join(settings)
    raise SettingError(f"objective.initial_weights={name} has {listed}: say {wanted}, too.")
