"""Reading and writing encoder weights: our folders, Hugging Face's layout, Meta's ``.pth``."""

import json
import logging
import os
import pickle
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pixio_robot import foreign
from pixio_robot.drafts import draft_of
from pixio_robot.encoder import ENCODERS, Encoder, EncoderSpec
from pixio_robot.errors import CheckpointError, SettingError, UnknownNameError
from pixio_robot.layouts import MODEL_TYPES, config_of, is_encoder_key, spec_of, to_hub_layout, to_meta_layout

logger = logging.getLogger(__name__)

SHIPPED = Path(__file__).parent / "shipped"
HUB_NAMES = {f"pixio_{size}": f"facebook/pixio-{size}" for size in ("vitb16", "vitl16", "vith16", "vit1b16", "vit5b16")}
HUB_NAMES |= {"mae_vitb16": "facebook/vit-mae-base", "mae_vitl16": "facebook/vit-mae-large"}
HUB_NAMES |= {"mae_vith14": "facebook/vit-mae-huge"}
OUR_BLOCK = "pixio_robot"
WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"


def load_encoder(
    name_or_path: str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    heads: int | None = None,
) -> Encoder:
    """Load a frozen encoder.

    Args:
        name_or_path: One of

            - "shipped:pixio_vitt16": an encoder that comes with this package;
            - a folder written by ``Encoder.save_pretrained`` or by transformers: Pixio, ViTMAE, or a model type in
              ``foreign.READERS`` (DINOv2, DINOv3, SigLIP, ViT, ResNet, timm), which needs the extra "transformers"; or
              one that such a folder lies in, alone, as in a finished run of ``pixio-pretrain``;
            - a ``.pth`` file in Meta's layout of Pixio or MAE;
            - a name of the Hugging Face Hub, such as "facebook/pixio-vitb16", or its short form "pixio_vitb16";
            - "timm:NAME", a model of timm, such as "timm:vit_small_patch16_224.augreg_in21k".
        device: Where the encoder lives; the CPU when absent.
        dtype: What it computes in; float32 when absent, whatever the file stores.
        heads: Attention heads, for a ``.pth`` whose sizes are not in ``ENCODERS`` (the file does not say).

    Raises:
        UnknownNameError: If nothing of that name exists.
        CheckpointError: If the weights are missing, truncated, foreign or would run code.
    """
    path, provenance = _locate(str(name_or_path))
    if path.is_dir():
        encoder = _read_folder(path, provenance)
    else:
        spec, state = _read_meta_file(path, heads)
        encoder = _build(spec, state, provenance, source=path)
    fingerprint = encoder.fingerprint  # of the weights as stored, before any cast
    if encoder.provenance.get("sha256", fingerprint) != fingerprint:
        logger.warning("%s: the weights were changed after the sha256 in config.json was written.", path)
        encoder.provenance["sha256"] = fingerprint
    here = Path(name_or_path).expanduser()
    encoder.source = str(here.absolute() if here.exists() else name_or_path)
    logger.info("Loaded %s, licence: %s.", name_or_path, encoder.provenance.get("licence", "not stated"))
    return encoder.to(device=device, dtype=dtype)


def write_folder(encoder: Encoder, folder: Path, *, dtype: torch.dtype | None) -> None:
    """Write an encoder in Hugging Face's layout of its family; see ``Encoder.save_pretrained``."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as scratch:
        weights, text = Path(scratch, WEIGHTS), Path(scratch, "config.json")
        if isinstance(encoder.backbone, foreign.ForeignBackbone):
            fingerprint = foreign.write_folder(encoder, Path(scratch), dtype=dtype)
            config = json.loads(text.read_text())
        else:
            state = {key: value.detach().cpu() for key, value in encoder.backbone.state_dict().items()}
            state = {key: value.to(dtype or value.dtype).contiguous() for key, value in state.items()}
            save_weights(weights, to_hub_layout(state, encoder.spec.family))
            config = config_of(encoder.spec) | {"dtype": str(next(iter(state.values())).dtype).removeprefix("torch.")}
            fingerprint = _build(encoder.spec, state, {}, source=folder).fingerprint
        config[OUR_BLOCK] = encoder.provenance | {"sha256": fingerprint}
        text.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        shutil.copymode(text, weights)  # transformers lets nobody else read what it writes
        for file in sorted(Path(scratch).iterdir()):
            if file != text:
                os.replace(file, folder / file.name)
        (folder / INDEX).unlink(missing_ok=True)  # of weights in several files, which would be read in place of these
        os.replace(text, folder / text.name)  # last: it is what makes the folder an encoder's


def save_weights(file: Path, state: dict[str, Tensor]) -> None:
    """Write weights as safetensors, whole or not at all, for whoever may read other files here."""
    with draft_of(file) as draft:
        draft.touch()
        mode = draft.stat().st_mode
        save_file(state, draft, metadata={"format": "pt"})
        draft.chmod(mode)  # safetensors lets nobody else read what it writes


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read the safetensors of a folder, in one file or several.

    Raises:
        CheckpointError: One is missing or damaged.
    """
    index = folder / INDEX
    names = [WEIGHTS]
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    state: dict[str, Tensor] = {}
    for name in names:
        try:
            state |= load_file(folder / name)
        except FileNotFoundError as error:
            raise CheckpointError(f"{folder} holds no {name}: it was not downloaded or copied whole.") from error
        except SafetensorError as error:
            raise CheckpointError(f"{folder / name} is truncated or not safetensors: {error}.") from error
    return state


def _locate(name: str) -> tuple[Path, dict[str, Any]]:
    """Find where a name's weights lie, downloading them if they are on the hub."""
    if name.startswith("shipped:"):
        shipped = {path.name: path for path in SHIPPED.iterdir() if path.is_dir()} if SHIPPED.is_dir() else {}
        if name.removeprefix("shipped:") not in shipped:
            raise UnknownNameError("shipped encoder", name, [f"shipped:{key}" for key in shipped])
        return shipped[name.removeprefix("shipped:")], {"name": name}
    if name.startswith("timm:"):
        return _download(f"timm/{name.removeprefix('timm:')}"), {"name": name}
    path = Path(name).expanduser()
    if path.exists():
        return path, {"name": path.name}
    if name in HUB_NAMES:
        name = HUB_NAMES[name]
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) and path.suffix not in {".pth", ".pt", ".safetensors"}:
        return _download(name), {"name": name}
    if name in ENCODERS:
        raise CheckpointError(
            f"No weights of {name!r} are published. Random ones: create_encoder({name!r}); "
            f"trained by us, if shipped: load_encoder('shipped:{name}')."
        )
    if path.suffix or os.sep in name:
        raise CheckpointError(f"There is no checkpoint at {path.absolute()}.")
    raise UnknownNameError("encoder", name, [*ENCODERS, *HUB_NAMES.values()])


def _download(name: str) -> Path:
    wanted = ["config.json", foreign.PROCESSOR, "*.safetensors", "*.safetensors.index.json", "README.md"]
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted))
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{name!r} is neither a folder here nor in the local hub cache, and the hub cannot be reached."
        ) from error
    except (HfHubHTTPError, HFValidationError) as error:
        raise CheckpointError(
            f"The hub refused {name!r}: {str(error).splitlines()[0]} If the model is gated, accept its terms on "
            "its page and run `hf auth login`."
        ) from error


def encoder_folder(folder: Path) -> Path:
    """Find the folder that holds an encoder: this one itself, or the only one inside it, as in a run's.

    Of a run that has not ended it is the one that was exported last.

    Raises:
        CheckpointError: If none does, or several do.
    """
    if (folder / "config.json").is_file():
        return folder
    inside = sorted(file.parent for file in folder.glob("*/config.json"))
    if not inside and (exported := sorted(folder.glob("exported/step-*"))):
        return encoder_folder(exported[-1])
    if not inside:
        raise CheckpointError(
            f"{folder} holds no config.json; an encoder folder has one beside its safetensors. A pre-training run that "
            "has not ended gets one by `pixio-pretrain export RUN`."
        )
    if len(inside) > 1:
        raise CheckpointError(f"{folder} holds several encoders; name one: {', '.join(map(str, inside))}.")
    return inside[0]


def _read_folder(folder: Path, provenance: Mapping[str, Any]) -> Encoder:
    folder = encoder_folder(folder)
    config_file = folder / "config.json"
    try:
        config = json.loads(config_file.read_text())
    except ValueError as error:
        raise CheckpointError(f"{config_file} is not JSON: {error}.") from error
    kind, facts = foreign.model_type(config), {**provenance, **_facts(folder, config)}
    if foreign.readable(kind):
        return foreign.read_folder(folder, str(kind), facts)
    if kind not in MODEL_TYPES:
        known = ", ".join(sorted([*MODEL_TYPES, *foreign.READERS]))
        raise CheckpointError(f"{folder} holds a model of type {kind!r}; those that are read: {known}.")
    try:
        spec = spec_of(config)
    except (KeyError, SettingError) as error:
        raise CheckpointError(f"{config_file} does not describe an encoder of type {kind!r}: {error}") from error
    return _build(spec, to_meta_layout(read_weights(folder), spec.family), facts, source=folder)


def _facts(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Our own block of config.json, and the licence that the model card states."""
    facts = dict(config.get(OUR_BLOCK, {}))
    card = folder / "README.md"
    if "licence" not in facts and card.is_file():
        data = huggingface_hub.ModelCard.load(card).data
        stated = data.get("license_name") or data.get("license")
        facts |= {"licence": stated} if stated else {}
    return facts


def _read_meta_file(path: Path, heads: int | None) -> tuple[EncoderSpec, dict[str, Tensor]]:
    """Read a ``.pth`` in Meta's layout, bare or wrapped as {"model": ...}; decoder keys are ignored."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors: reading it could run code, so it was not read. Save only the state "
            "dict, torch.save(model.state_dict(), path), or convert it to safetensors where you trust it."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is truncated or not a PyTorch checkpoint: {error}") from error
    state = loaded.get("model", loaded) if isinstance(loaded, Mapping) else {}
    state = {key: value for key, value in state.items() if isinstance(value, Tensor) and is_encoder_key(key)}
    if not {"cls_token", "pos_embed", "patch_embed.proj.weight"} <= state.keys():
        raise CheckpointError(
            f"{path} is neither a Pixio nor an MAE encoder: it lacks cls_token, pos_embed or patch_embed.proj."
        )
    return _spec_of(state, heads, path), state


def _spec_of(state: Mapping[str, Tensor], heads: int | None, path: Path) -> EncoderSpec:
    """Read the sizes off the tensors; only the head count is not in them."""
    width, patch_size = state["patch_embed.proj.weight"].shape[0], state["patch_embed.proj.weight"].shape[-1]
    depth = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    class_tokens = state["cls_token"].shape[1]
    side = round((state["pos_embed"].shape[1] - class_tokens) ** 0.5)
    positions = state["pos_embed"][:, :class_tokens]
    family = "mae" if class_tokens == 1 and not positions.any() else "pixio"  # MAE's class token has no position
    known = [spec.heads for spec in ENCODERS.values() if (spec.width, spec.depth) == (width, depth)]
    if heads is None and not known:
        raise CheckpointError(
            f"{path} is {width} wide and {depth} deep, which is no published size, and the file does not say how "
            "many attention heads it has: pass heads=... to load_encoder."
        )
    try:
        return EncoderSpec(
            family=family,
            width=width,
            depth=depth,
            heads=heads or known[0],
            patch_size=patch_size,
            image_size=side * patch_size,
            class_tokens=class_tokens,
            mlp_ratio=state["blocks.0.mlp.fc1.weight"].shape[0] // width,
        )
    except (KeyError, SettingError) as error:
        raise CheckpointError(f"{path} is neither a Pixio nor an MAE encoder: {error}") from error


def _build(spec: EncoderSpec, state: dict[str, Tensor], provenance: Mapping[str, Any], *, source: Path) -> Encoder:
    with torch.device("meta"):
        encoder = Encoder(spec, provenance=provenance)
    state = {key: value.float() for key, value in state.items()}
    try:
        encoder.backbone.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{source} does not hold the weights that its sizes promise: {error}") from error
    encoder.requires_grad_(False)
    return encoder
