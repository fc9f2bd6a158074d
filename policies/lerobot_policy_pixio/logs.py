"""What a training run tells while it goes: ``log.jsonl``, TensorBoard where it is installed, and wandb where asked."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lerobot.common.wandb_utils import WandBLogger
from lerobot.configs.train import TrainPipelineConfig

from pixio_robot.drafts import write_whole

Metrics = dict[str, float]


class RunLog:
    """The log of a run that may have been stopped and taken up again.

    Args:
        folder: The run's folder. ``log.jsonl`` in it has one JSON object per line, and ``tensorboard/`` the same
            curves if the package is installed.
        step: The step at which the run begins or goes on; what a killed run logged after it does not count.
        wandb: LeRobot's own logger, if the run is tracked there.

    Attributes:
        rows: Everything logged so far.
    """

    def __init__(self, folder: Path, *, step: int, wandb: WandBLogger | None = None) -> None:
        self._file, self._wandb = folder / "log.jsonl", wandb
        lines = self._file.read_text().splitlines() if self._file.is_file() else []
        self.rows: list[Metrics] = [row for row in map(json.loads, lines) if row["step"] <= step]
        self._board: Any = None
        if find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def holds(self, step: int, name: str) -> bool:
        """Whether a step's row says something."""
        return any(row["step"] == step and name in row for row in self.rows)

    def write(self, row: Metrics) -> None:
        """Add a row, which says its ``step``; or add it to the last row, if that is of the same step."""
        if self.rows and self.rows[-1]["step"] == row["step"]:
            self.rows[-1] |= row
        else:
            self.rows.append(row)
        write_whole(self._file, "".join(json.dumps(row) + "\n" for row in self.rows))
        step = int(row["step"])
        curves = {name: value for name, value in row.items() if name != "step"}
        if self._board is not None:
            for name, value in curves.items():
                self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log_dict(curves, step)

    def keep(self, checkpoint: Path) -> None:
        """Upload a checkpoint, unless wandb's ``disable_artifact`` says not to."""
        if self._wandb is not None:
            self._wandb.log_policy(checkpoint)

    def close(self) -> None:
        """Write what is left."""
        if self._board is not None:
            self._board.close()


def track(config: TrainPipelineConfig, start: int) -> WandBLogger | None:
    """Open LeRobot's own logger of a run that begins or goes on at step ``start``, if its settings ask for it."""
    if not config.wandb.enable:
        return None
    config.resume = start > 0
    try:
        return WandBLogger(config)
    finally:
        config.resume = False
