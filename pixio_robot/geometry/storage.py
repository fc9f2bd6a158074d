"""Folders of trained geometry: ``config.json`` and ``model.safetensors``, and the encoder by name and hash.

A head is worth nothing with another encoder than its own, and the encoder is stored elsewhere already; so a folder
names it, by what ``load_encoder`` reads and by the sha-256 of its weights, and refuses any other.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pixio_robot.checkpoints import load_encoder
from pixio_robot.encoder import Encoder
from pixio_robot.errors import CheckpointError

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class Stored(NamedTuple):
    """What a folder holds.

    Attributes:
        encoder: The encoder that it names, or the one that was given and is the same.
        settings: Of the model.
        facts: What training wrote down.
        state: Weights by name.
    """

    encoder: Encoder
    settings: dict[str, Any]
    facts: dict[str, Any]
    state: dict[str, Tensor]


def write_folder(
    folder: Path,
    *,
    kind: str,
    module: nn.Module,
    settings: Mapping[str, Any],
    encoder: Encoder,
    facts: Mapping[str, Any],
) -> None:
    """Write a folder; each file appears whole or not at all, ``config.json`` last.

    Args:
        folder: Made if absent.
        kind: What it holds, such as "depth".
        module: What is stored of the model: everything but the encoder.
        settings: Of the model, in JSON's types.
        encoder: The encoder; named by what it was loaded from, or else by its own name.
        facts: Of training, in JSON's types.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    config = {
        "kind": kind,
        "settings": dict(settings),
        "encoder": encoder.source or str(encoder.provenance.get("name", "")),
        "encoder_sha256": encoder.fingerprint,
        "encoder_licence": encoder.provenance.get("licence", "not stated"),
        "facts": dict(facts),
    }
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as scratch:
        weights, text = Path(scratch, WEIGHTS), Path(scratch, CONFIG)
        save_file(state, weights, metadata={"format": "pt"})
        text.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        shutil.copymode(text, weights)  # safetensors lets nobody else read what it writes
        os.replace(weights, folder / WEIGHTS)
        os.replace(text, folder / CONFIG)


def read_folder(folder: str | Path, *, kind: str, encoder: Encoder | None = None) -> Stored:
    """Read a folder and its encoder.

    Args:
        folder: What ``write_folder`` wrote.
        kind: What it has to hold.
        encoder: The encoder, if it is in memory already; loaded by its name when absent.

    Raises:
        CheckpointError: Files that are missing, damaged or of another kind, or another encoder.
        UnknownNameError: The encoder that it names is not to be found.
    """
    folder = Path(folder).expanduser()
    config = _read_config(folder)
    if config.get("kind") != kind:
        raise CheckpointError(f"{folder} holds {config.get('kind', 'something else')!r}, not {kind!r}.")
    try:
        state = load_file(folder / WEIGHTS)
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} holds no {WEIGHTS} beside its {CONFIG}.") from error
    except SafetensorError as error:
        raise CheckpointError(f"{folder} is damaged: {error}.") from error
    encoder = load_encoder(config["encoder"]) if encoder is None else encoder
    if encoder.fingerprint != config["encoder_sha256"]:
        raise CheckpointError(
            f"{folder} was trained on the encoder {config['encoder']!r} (sha256 {config['encoder_sha256'][:12]}...), "
            f"not on {encoder.provenance.get('name', 'this one')!r} ({encoder.fingerprint[:12]}...): its answers would "
            "be noise. Give the encoder that it names, or train it anew."
        )
    return Stored(encoder, config["settings"], config.get("facts", {}), state)


def kind_of(folder: str | Path) -> str:
    """Say what a folder holds: "depth" for ``load_depth``, "multiview" for ``load_multiview``.

    Raises:
        CheckpointError: It holds nothing of ours.
    """
    config = _read_config(Path(folder).expanduser())
    if "kind" not in config:
        raise CheckpointError(f"{folder} holds no trained geometry: its {CONFIG} does not say of what kind it is.")
    return config["kind"]


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / CONFIG).read_text())
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} holds no {CONFIG} with {WEIGHTS} beside it: {error}.") from error
    except ValueError as error:
        raise CheckpointError(f"{folder} is damaged: {error}.") from error


def fill(module: nn.Module, state: Mapping[str, Tensor], folder: str | Path) -> None:
    """Put stored weights into a module.

    Raises:
        CheckpointError: They are of another shape than the settings promise.
    """
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{folder} does not hold the weights that its settings promise: {error}") from error
