"""Folders of trained geometry: ``config.json`` and ``model.safetensors``, and the encoder by name and hash.

A head is worth nothing with another encoder than its own, and the encoder is stored elsewhere already; so a folder
names it, by what ``load_encoder`` reads and by the sha-256 of its weights, and refuses any other.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn

from pixio_robot.checkpoints import WEIGHTS, load_encoder, read_weights, save_weights
from pixio_robot.drafts import write_whole
from pixio_robot.encoder import Encoder
from pixio_robot.errors import CheckpointError

CONFIG = "config.json"


class StoredModel(nn.Module, ABC):
    """A model on a frozen encoder that can be written to a folder.

    Args:
        encoder: The encoder.
        settings: Of the model, a dataclass; the defaults when absent.
        facts: What is known of training, in JSON's types.

    Attributes:
        kind: What its folders say that they hold.
        settings_type: The dataclass.
    """

    kind: ClassVar[str]
    settings_type: ClassVar[type[Any]]

    def __init__(self, encoder: Encoder, settings: Any, *, facts: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.settings = settings or self.settings_type()
        self.facts = dict(facts or {})

    @abstractmethod
    def stored(self) -> nn.Module:
        """What is stored of it: everything but the encoder."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Write weights, settings, and the encoder's name and hash; each file appears whole or not at all."""
        folder, encoder = Path(folder), self.encoder
        config = {
            "kind": self.kind,
            "settings": asdict(self.settings),
            "encoder": encoder.source or str(encoder.provenance.get("name", "")),
            "encoder_sha256": encoder.fingerprint,
            "encoder_licence": encoder.provenance.get("licence", "not stated"),
            "facts": self.facts,
        }
        state = {key: value.detach().cpu().contiguous() for key, value in self.stored().state_dict().items()}
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(folder / WEIGHTS, state)
        write_whole(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")

    @classmethod
    def load(
        cls, folder: str | Path, *, encoder: Encoder | None = None, device: torch.device | str | None = None
    ) -> Self:
        """Read what ``save_pretrained`` wrote, in evaluation mode; arguments and errors are those of ``load_depth``."""
        folder = Path(folder).expanduser()
        config = _read_config(folder)
        if config.get("kind") != cls.kind:
            raise CheckpointError(f"{folder} holds {config.get('kind', 'something else')!r}, not {cls.kind!r}.")
        state = read_weights(folder)
        encoder = load_encoder(config["encoder"]) if encoder is None else encoder
        if encoder.fingerprint != config["encoder_sha256"]:
            raise CheckpointError(
                f"{folder} was trained on the encoder {config['encoder']!r} (sha256 {config['encoder_sha256'][:12]}"
                f"...), not on {encoder.provenance.get('name', 'this one')!r} ({encoder.fingerprint[:12]}...): its "
                "answers would be noise. Give the encoder that it names, or train it anew."
            )
        try:
            settings = cls.settings_type(**config["settings"])
        except TypeError as error:
            raise CheckpointError(f"{folder} has settings that this version does not know: {error}") from error
        model = cls(encoder, settings, facts=config.get("facts"))
        try:
            model.stored().load_state_dict(state)
        except RuntimeError as error:
            raise CheckpointError(f"{folder} does not hold the weights that its settings promise: {error}") from error
        return model.to(device or next(encoder.parameters()).device).eval()


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
