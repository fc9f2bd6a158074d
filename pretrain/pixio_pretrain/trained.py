"""The objective of a run, with the weights of its last checkpoint."""

from pathlib import Path
from typing import Any

from pixio_pretrain.checkpoint import checkpoints, load_weights, read_facts
from pixio_pretrain.objectives import Objective, create_objective
from pixio_robot.errors import CheckpointError


def read_run(folder: str | Path) -> tuple[dict[str, Any], Path]:
    """Read what a run's last checkpoint says of itself.

    Args:
        folder: The run's.

    Returns:
        Its facts ("identity": the run's settings by dotted name; "step" and other counters), and its place.

    Raises:
        CheckpointError: If there is no checkpoint, or it is damaged.
    """
    folder = Path(folder).expanduser()
    found = checkpoints(folder / "checkpoints")
    if not found:
        raise CheckpointError(f"There is no checkpoint in {folder.absolute()}; give the folder of a pre-training run.")
    return read_facts(found[-1]), found[-1]


def load_objective(folder: str | Path, *, device: str = "cpu") -> Objective:
    """Build the objective of a run at its last checkpoint, to be looked at, not to be trained on.

    Args:
        folder: The run's.
        device: Where the weights go.

    Raises:
        CheckpointError: If there is no checkpoint, or it is damaged or foreign.
    """
    facts, place = read_run(folder)
    identity = facts["identity"]
    settings = {key.removeprefix("objective."): identity[key] for key in identity if key.startswith("objective.")}
    objective = create_objective(settings.pop("name"), **settings)
    load_weights(place, objective)
    return objective.eval().requires_grad_(False).to(device)
