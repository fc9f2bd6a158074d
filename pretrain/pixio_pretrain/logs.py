"""What a run tells while it goes: a line per few steps, pictures, and both again to whoever tracks it."""

import hashlib
import importlib
import json
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from pixio_pretrain.config import LogConfig
from pixio_robot.drafts import write_whole
from pixio_robot.errors import SettingError, UnknownNameError

Row = dict[str, float]


class Tracker(Protocol):
    """Something that shows curves and pictures."""

    def write(self, row: Mapping[str, float], step: int) -> None:
        """Add a point to each curve."""
        ...

    def show(self, picture: Image.Image, step: int) -> None:
        """Add a picture."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


class TensorBoard:
    """Event files in ``tensorboard/``. What an interrupted run wrote after its last checkpoint is hidden.

    Args:
        folder: The run's folder.
        step: The step at which the run begins or goes on.
    """

    def __init__(self, folder: Path, step: int) -> None:
        writer = _require("torch.utils.tensorboard", "tensorboard").SummaryWriter
        self._writer = writer(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, row: Mapping[str, float], step: int) -> None:
        """Add a point to each curve."""
        for name, value in row.items():
            self._writer.add_scalar(name, value, step)

    def show(self, picture: Image.Image, step: int) -> None:
        """Add a picture."""
        self._writer.add_image("held_out", np.asarray(picture.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class Board:
    """Weights & Biases, or Trackio, which has the same interface. A run that is taken up again goes on there, too.

    Args:
        name: The package: "wandb" or "trackio".
        folder: The run's folder; its last part is the run's name.
        config: Names the project.
        settings: The run's, for the record.
    """

    def __init__(self, name: str, folder: Path, config: LogConfig, settings: Mapping[str, Any]) -> None:
        self._package = _require(name, name)
        place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
        known = {"id": f"{folder.name}-{place}", "dir": str(folder)} if name == "wandb" else {}
        self._package.init(
            project=config.project, name=f"{folder.name}-{place}", config=dict(settings), resume="allow", **known
        )

    def write(self, row: Mapping[str, float], step: int) -> None:
        """Add a point to each curve."""
        self._package.log(dict(row), step=step)

    def show(self, picture: Image.Image, step: int) -> None:
        """Add a picture."""
        self._package.log({"held_out": self._package.Image(picture)}, step=step)

    def close(self) -> None:
        """Write what is left."""
        self._package.finish()


class RunLog(AbstractContextManager["RunLog"]):
    """Takes what a run tells, and keeps nothing: for a process that leaves it to another."""

    def write(self, row: Row) -> None:
        """Log a row."""

    def show(self, picture: Image.Image, step: int) -> None:
        """Keep a picture."""

    def __exit__(self, *exception: object) -> None:
        """Close everything."""


class Logs(RunLog):
    """``log.jsonl``, ``pictures/`` and trackers of a run.

    Args:
        folder: The run's folder.
        config: Which trackers.
        settings: The run's, for the trackers' records.
        step: The step at which the run begins or goes on; what a stopped run logged after it does not count.

    Raises:
        UnknownNameError: If a tracker is unknown.
        SettingError: If one is not installed.
    """

    def __init__(self, folder: Path, config: LogConfig, *, settings: Mapping[str, Any], step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._trackers = [open_tracker(name, folder, config, settings, step) for name in config.trackers]
        write_whole(folder / "log.jsonl", "".join(json.dumps(row) + "\n" for row in read_rows(folder, step)))
        self._lines = (folder / "log.jsonl").open("a", buffering=1)

    def write(self, row: Row) -> None:
        """Log a row; what is not finite is left out, as JSON has no word for it."""
        finite = {name: value for name, value in row.items() if math.isfinite(value)}
        self._lines.write(json.dumps(finite) + "\n")
        for tracker in self._trackers:
            tracker.write({name: value for name, value in finite.items() if name != "step"}, int(row["step"]))

    def show(self, picture: Image.Image, step: int) -> None:
        """Keep a picture."""
        (self._folder / "pictures").mkdir(exist_ok=True)
        picture.save(self._folder / "pictures" / f"step-{step:08d}.png", optimize=True)
        for tracker in self._trackers:
            tracker.show(picture, step)

    def __exit__(self, *exception: object) -> None:
        """Close everything."""
        self._lines.close()
        for tracker in self._trackers:
            tracker.close()


def read_rows(folder: Path, step: int) -> list[Row]:
    """Read ``log.jsonl`` up to a step."""
    file = folder / "log.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]  # a kill may cut the last line
    return [row for row in rows if row["step"] <= step]


def open_tracker(name: str, folder: Path, config: LogConfig, settings: Mapping[str, Any], step: int) -> Tracker:
    """Open a tracker.

    Raises:
        UnknownNameError: If it is unknown.
        SettingError: If it is not installed.
    """
    if name == "tensorboard":
        return TensorBoard(folder, step)
    if name in ("wandb", "trackio"):
        return Board(name, folder, config, settings)
    raise UnknownNameError("tracker", name, ("tensorboard", "wandb", "trackio"))


def _require(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SettingError(
            f"log.trackers names {package}, which is not installed: pip install {package}, or leave it out "
            "(log.trackers=[] keeps log.jsonl and pictures/ only)."
        ) from error
