"""A run's state on disk: one folder per checkpoint, whole or absent, and refused when it belongs to another run.

The folders are those of ``torch.distributed.checkpoint``, so that any number of processes, sharing weights in any way,
reads what any other wrote. Like all of its checkpoints they contain pickles: read only your own.
"""

import errno
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from pixio_pretrain.distributed import World
from pixio_pretrain.identity import differences
from pixio_robot.errors import CheckpointError

KEPT = 2
FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    step: int,
    facts: Mapping[str, Any],
    own: Mapping[str, Any],
    world: World,
) -> None:
    """Write a checkpoint beside its place and move it there, so that a kill leaves the old ones or one more.

    The two newest are kept. All processes call this together.

    Args:
        folder: Comes to hold "step-00000200" and the like.
        model: Its parameters may be sharded.
        optimizer: Of those parameters.
        step: Optimiser steps done.
        facts: What is the same in all processes, in JSON's types.
        own: What this process alone knows, in JSON's types.
        world: The processes.

    Raises:
        CheckpointError: If the disk is full, or cannot be written for another reason.
    """
    scratch, place = folder / "writing", folder / f"step-{step:08d}"
    state = _tensors(model, optimizer) | {"facts": json.dumps(facts), f"own.{world.rank}": json.dumps(own)}
    if world.first:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(scratch, ignore_errors=True)
    world.wait()
    try:
        with _quiet():
            save(state, checkpoint_id=scratch)
    except (CheckpointException, OSError) as error:
        if world.first:
            shutil.rmtree(scratch, ignore_errors=True)
        raise _unwritten(error, folder, model, optimizer) from error
    if world.first:
        os.replace(scratch, place)
        for old in checkpoints(folder)[:-KEPT]:
            shutil.rmtree(old)
    world.wait()


def checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints, oldest first."""
    return sorted(place for place in folder.glob("step-*") if place.name.removeprefix("step-").isdigit())


def read_facts(place: Path) -> dict[str, Any]:
    """Read a checkpoint's ``facts``.

    Raises:
        CheckpointError: If it is damaged.
    """
    return json.loads(_read(place, {"facts": ""})["facts"])


def load_checkpoint(place: Path, model: nn.Module, optimizer: torch.optim.Optimizer, *, rank: int) -> dict[str, Any]:
    """Put model and optimiser where they were. All processes call this together.

    Args:
        place: A checkpoint's folder.
        model: As for ``save_checkpoint``; the number of processes and the strategy may differ.
        optimizer: As for ``save_checkpoint``.
        rank: This process.

    Returns:
        What process ``rank`` saved as its own; the first process's, if there was no such process.

    Raises:
        CheckpointError: If the checkpoint is damaged.
    """
    own = f"own.{rank}"
    with _reading(place):
        listed = FileSystemReader(place).read_metadata().state_dict_metadata
    own = own if own in listed else "own.0"
    wanted = _tensors(model, optimizer)
    unmoved = {key for key in wanted if key.startswith("optimizer.")} - listed.keys()
    state = _read(place, {key: value for key, value in wanted.items() if key not in unmoved} | {own: ""})
    model_state = {key: value for key, value in state.items() if key.startswith("model.")}
    set_model_state_dict(model, {key.removeprefix("model."): value for key, value in model_state.items()})
    moments = {key.removeprefix("optimizer."): value for key, value in state.items() if key.startswith("optimizer.")}
    groups = get_optimizer_state_dict(model, optimizer, options=FLAT)
    set_optimizer_state_dict(model, optimizer, groups | moments, options=FLAT)
    for name, parameter in model.named_parameters():
        if any(key.startswith(f"optimizer.state.{name}.") for key in unmoved):  # it had no gradient yet
            del optimizer.state[parameter]
    return json.loads(state[own])


def load_weights(place: Path, model: nn.Module) -> None:
    """Put only the model's weights where they were, in a process on its own.

    Raises:
        CheckpointError: If the checkpoint is damaged, or of another model.
    """
    state = _read(place, {f"model.{name}": value for name, value in model.state_dict().items()})
    model.load_state_dict({key.removeprefix("model."): value for key, value in state.items()})


def check_identity(theirs: Mapping[str, Any], ours: Mapping[str, Any], place: Path) -> None:
    """Refuse to go on with what was begun with other settings.

    Args:
        theirs: The settings that it was begun with, by dotted name.
        ours: Those of now.
        place: The folder of a run or an evaluation, or a table of features.

    Raises:
        CheckpointError: Naming those that differ.
    """
    differing = differences(theirs, ours)
    if differing:
        raise CheckpointError(
            f"{place} was made with other settings: {differing}. "
            "Choose another folder, or give the settings it was made with."
        )


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """All weights and moments by name; learning rates and the like follow from the settings."""
    weights = get_model_state_dict(model)
    moments = get_optimizer_state_dict(model, optimizer, options=FLAT)
    return {f"model.{name}": value for name, value in weights.items()} | {
        f"optimizer.{name}": value for name, value in moments.items() if name.startswith("state.")
    }


def _read(place: Path, state: dict[str, Any]) -> dict[str, Any]:
    """Fill a state from a checkpoint."""
    with _reading(place), _quiet():
        load(state, checkpoint_id=place)
    return state


@contextmanager
def _reading(place: Path) -> Iterator[None]:
    try:
        yield
    except (Exception, CheckpointException) as error:  # damage surfaces as anything at all
        cause = _cause(error)
        raise CheckpointError(
            f"{place} is damaged or foreign ({type(cause).__name__}: {cause}); move or rename it to go on from the "
            "checkpoint before it, or to start anew where there is none."
        ) from error


def _cause(error: BaseException) -> BaseException:
    """What went wrong in the first process where something did."""
    failures = error.failures.values() if isinstance(error, CheckpointException) else []
    return next((cause for cause, _ in failures), error)


@contextmanager
def _quiet() -> Iterator[None]:
    """A process on its own needs no word about being on its own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield


def _unwritten(
    error: BaseException, folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> CheckpointError:
    """Say what stopped a checkpoint from being written, and what is left."""
    cause = _cause(error)
    last = checkpoints(folder)[-1:]
    left = f"{last[0]} is whole, and the run goes on from there." if last else "There is no earlier one."
    if not isinstance(cause, OSError) or cause.errno not in (errno.ENOSPC, errno.EDQUOT):
        return CheckpointError(f"No checkpoint could be written in {folder} ({cause}). {left}")
    size = sum(value.nbytes for value in _tensors(model, optimizer).values() if isinstance(value, torch.Tensor))
    free = shutil.disk_usage(folder).free
    return CheckpointError(
        f"No space for a checkpoint in {folder}: it takes {size / 1e9:.3f} GB, and {free / 1e9:.3f} GB are free. "
        f"{left} Make space and give the same command again."
    )
