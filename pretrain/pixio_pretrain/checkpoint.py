"""A run's state on disk: whole or absent, and refused when it belongs to another run."""

import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pixio_robot.errors import CheckpointError


def save_checkpoint(file: Path, state: Mapping[str, Any], *, identity: Mapping[str, Any]) -> None:
    """Write a checkpoint beside its place and move it there, so that a kill leaves the old or the new one.

    Args:
        file: Its place.
        state: State dictionaries, numbers and tensors.
        identity: The settings that decide the run's result.
    """
    scratch = file.with_suffix(".writing")
    torch.save({"identity": json.dumps(identity, sort_keys=True), "state": dict(state)}, scratch)
    os.replace(scratch, file)


def load_checkpoint(file: Path, *, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read a checkpoint, if there is one.

    Raises:
        CheckpointError: If the file is damaged, or of a run with other settings; the message names those.
    """
    if not file.exists():
        return None
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
        theirs, state = json.loads(found["identity"]), found["state"]
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is damaged or foreign ({error}); move it away to start anew.") from error
    ours = json.loads(json.dumps(identity))
    differing = [
        f"{key} (there {theirs.get(key)!r}, now {ours.get(key)!r})"
        for key in sorted(theirs.keys() | ours.keys())
        if theirs.get(key) != ours.get(key)
    ]
    if differing:
        raise CheckpointError(
            f"{file.parent} holds a run with other settings: {', '.join(differing)}. "
            "Choose another folder, or give the settings it was started with."
        )
    return state
