"""The objective of a run, with the weights of its last checkpoint."""

from pathlib import Path
from typing import Any, NamedTuple

from pixio_pretrain.checkpoint import checkpoints, load_weights, read_facts
from pixio_pretrain.objectives import Objective, create_objective
from pixio_robot.errors import CheckpointError


class Trained(NamedTuple):
    """What a run's checkpoint holds.

    Attributes:
        objective: With the checkpoint's weights; to be looked at, not to be trained on.
        facts: "identity": the run's settings by dotted name; "step" and other counters.
        place: The checkpoint.
    """

    objective: Objective
    facts: dict[str, Any]
    place: Path


def load_trained(folder: str | Path, *, device: str = "cpu") -> Trained:
    """Build the objective of a run at its last checkpoint, and say which that was: a run may go on meanwhile.

    Args:
        folder: The run's.
        device: Where the weights go.

    Raises:
        CheckpointError: If there is no checkpoint, if it is damaged or foreign, or if weights from elsewhere that it
            was trained with, such as a teacher's, are others now.
    """
    folder = Path(folder).expanduser()
    found = checkpoints(folder / "checkpoints")
    if not found:
        raise CheckpointError(f"There is no checkpoint in {folder.absolute()}; give the folder of a pre-training run.")
    facts = read_facts(found[-1])
    identity = facts["identity"]
    settings = {key.removeprefix("objective."): identity[key] for key in identity if key.startswith("objective.")}
    objective = create_objective(settings.pop("name"), **settings)
    for name, ours in objective.origins.items():
        theirs = identity[f"{name}_sha256"]
        if ours != theirs:
            raise CheckpointError(
                f"{folder.absolute()} was trained with a {name} of the sha256 {theirs[:12]}..., and objective.{name} "
                f"now has {ours[:12]}...: its name has come to stand for other weights. Put those of then back."
            )
    load_weights(found[-1], objective)
    return Trained(objective.eval().requires_grad_(False).to(device), facts, found[-1])
