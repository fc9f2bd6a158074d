"""A policy's adapter: read from the policy's checkpoint, described, and built again from the description.

A checkpoint of ``lerobot_policy_pixio`` is ``config.json`` and ``model.safetensors``; the adapter's weights are those
under ``eyes.adapter.``, and their shapes say most of how it was made. LeRobot is not needed to read them.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from pixio_robot.adapter import PATCH_POOLS, VisualFeatureAdapter
from pixio_robot.checkpoints import read_weights
from pixio_robot.encoder import Encoder
from pixio_robot.errors import CheckpointError

_PREFIX = "eyes.adapter."


class PolicyEyes(NamedTuple):
    """What a policy sees with.

    Attributes:
        adapter: Its adapter, in evaluation mode.
        size: (height, width) in pixels at which its encoder sees.
        cameras: Names of its cameras, in the adapter's order.
    """

    adapter: VisualFeatureAdapter
    size: tuple[int, int]
    cameras: list[str]


def load_adapter(folder: str | Path, encoder: Encoder) -> PolicyEyes:
    """Read the adapter of a trained policy.

    Args:
        folder: A ``pretrained_model`` folder of pixio_act or pixio_diffusion.
        encoder: The frozen encoder that the policy was trained on.

    Raises:
        CheckpointError: No such policy, a damaged one, one that changed its encoder, or another encoder.
    """
    folder = Path(folder).expanduser()
    try:
        config = json.loads((folder / "config.json").read_text())
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} is no pretrained_model folder of a policy: {error}.") from error
    except ValueError as error:
        raise CheckpointError(f"{folder} is damaged: {error}.") from error
    stored = read_weights(folder)
    state = {name.removeprefix(_PREFIX): value for name, value in stored.items() if name.startswith(_PREFIX)}
    if not state or "encoder_hash" not in config:
        kind = config.get("type", "another kind")
        raise CheckpointError(f"{folder} is a policy of type {kind!r} without an adapter of ours.")
    if config.get("train_encoder", "frozen") != "frozen":
        raise CheckpointError(
            f"{folder} trained its encoder (train_encoder={config['train_encoder']!r}), so the adapter does not fit "
            "the encoder that it began with."
        )
    if config["encoder_hash"] != encoder.fingerprint:
        raise CheckpointError(
            f"{folder} was trained on the encoder {config['encoder']!r} (sha256 {config['encoder_hash'][:12]}...), not "
            f"on {encoder.provenance.get('name', 'this one')!r} ({encoder.fingerprint[:12]}...). Export that."
        )
    cameras = [name for name, feature in config["input_features"].items() if feature["type"] == "VISUAL"]
    inner = state["slot_embedding"].shape[1]
    vector = state.get("to_vector.weight")
    adapter = VisualFeatureAdapter(
        encoder.spec.width,
        dim=inner if vector is None else len(vector),
        cameras=len(state["camera_embedding"]),
        class_tokens=encoder.spec.class_tokens,
        classes=config["classes"],
        patches=config["patches"],
        grid=config["grid"],
        output="tokens" if vector is None else "vector",
        standardize=config.get("standardize", False),
        patch_count=state["patch_pool.norm.mean"].shape[1] if "patch_pool.norm.mean" in state else None,
    )
    try:
        adapter.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{folder} does not hold the adapter that its settings promise: {error}") from error
    side = config["image_size"] or encoder.spec.image_size
    return PolicyEyes(adapter.eval(), (side, side), cameras)


def describe_adapter(adapter: VisualFeatureAdapter) -> dict[str, Any]:
    """Give the arguments that build an adapter of this form, in JSON's types."""
    pools = {kind: name for name, kind in PATCH_POOLS.items()}
    slots = adapter.length // (adapter.steps * adapter.cameras)
    classes = {"each": adapter.class_tokens, "none": 0}.get(adapter.classes, 1)
    return {
        "width": adapter.width,
        "dim": adapter.slot_embedding.shape[1] if adapter.to_vector is None else adapter.to_vector.out_features,
        "cameras": adapter.cameras,
        "class_tokens": adapter.class_tokens,
        "classes": adapter.classes,
        "patches": "none" if adapter.patch_pool is None else pools[type(adapter.patch_pool)],
        "grid": max(1, round((slots - classes) ** 0.5)),
        "output": "tokens" if adapter.to_vector is None else "vector",
        "standardize": adapter.standardize,
        "patch_count": adapter.patch_count,
    }
