"""The objective of a run, with the weights of its last checkpoint."""

import warnings
from pathlib import Path

from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load

from pixio_pretrain.checkpoint import checkpoints, read_facts
from pixio_pretrain.objectives import Objective, create_objective
from pixio_robot.errors import CheckpointError


def load_objective(folder: str | Path, *, device: str = "cpu") -> Objective:
    """Build the objective of a run at its last checkpoint, to be looked at, not to be trained on.

    Args:
        folder: The run's.
        device: Where the weights go.

    Raises:
        CheckpointError: If there is no checkpoint, or it is damaged or foreign.
    """
    folder = Path(folder).expanduser()
    found = checkpoints(folder / "checkpoints")
    if not found:
        raise CheckpointError(f"There is no checkpoint in {folder.absolute()}; give the folder of a pre-training run.")
    identity = read_facts(found[-1])["identity"]
    settings = {key.removeprefix("objective."): identity[key] for key in identity if key.startswith("objective.")}
    objective = create_objective(settings.pop("name"), **settings)
    weights = {f"model.{name}": value for name, value in objective.state_dict().items()}
    try:
        with warnings.catch_warnings():  # a process on its own needs no word about being on its own
            warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
            load(weights, checkpoint_id=found[-1])  # in place
    except (Exception, CheckpointException) as error:  # damage surfaces as anything at all; theirs is no Exception
        raise CheckpointError(f"{found[-1]} is damaged or foreign ({type(error).__name__}).") from error
    return objective.eval().requires_grad_(False).to(device)
