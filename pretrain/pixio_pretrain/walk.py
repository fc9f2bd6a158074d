"""The steps of a small training, of one process: logged, saved, and taken up again wherever it was stopped."""

import logging
import signal
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn
from tqdm import tqdm

from pixio_pretrain.checkpoint import check_identity, checkpoints, load_checkpoint, read_facts, save_checkpoint
from pixio_pretrain.config import LogConfig
from pixio_pretrain.distributed import World
from pixio_pretrain.heap import keep_freed_memory
from pixio_pretrain.logs import Logs, Row
from pixio_robot.runs import termination

logger = logging.getLogger(__name__)


class Walk:
    """A training on its way, from its first step or from its last checkpoint; ``with`` it are log and progress bar.

    Args:
        folder: Comes to hold ``log.jsonl`` and ``checkpoints/``.
        module: What is trained, where it is trained; comes to hold the weights of the last checkpoint.
        optimizer: Likewise, its moments.
        steps: Steps in all.
        identity: What decides the result; a folder that holds anything else is refused.
        fresh: What is ``known`` before the first step.
        name: What the progress bar says.

    Attributes:
        step: Steps done.
        known: What the last checkpoint knows beside weights and moments.

    Raises:
        CheckpointError: The folder holds another training, or its checkpoint is damaged.
    """

    def __init__(
        self,
        folder: Path,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        steps: int,
        identity: dict[str, Any],
        fresh: Mapping[str, Any],
        name: str,
    ) -> None:
        self._folder, self._module, self._optimizer = folder, module, optimizer
        self._steps, self._identity, self._name = steps, identity, name
        self.step, self.known = 0, dict(fresh)
        if found := checkpoints(folder / "checkpoints"):
            facts = read_facts(found[-1])
            check_identity(facts["identity"], identity, folder)
            load_checkpoint(found[-1], module, optimizer, rank=0)
            self.step, self.known = facts["step"], {key: facts[key] for key in fresh}
            logger.info("Resuming %s at step %d of %d.", folder, self.step, steps)
        self._world = World(device=next(module.parameters()).device)

    def __enter__(self) -> Self:
        """Open the log, show progress, and listen for SIGTERM."""
        if self._world.device.type == "cpu":
            keep_freed_memory()
        with ExitStack() as stack:
            self._asked = stack.enter_context(termination())
            logs = Logs(self._folder, LogConfig(trackers=[]), settings=self._identity, step=self.step)
            self._logs = stack.enter_context(logs)
            progress = tqdm(total=self._steps, initial=self.step, desc=self._name, unit="step")
            self._progress = stack.enter_context(progress)
            self._open = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        """Close all of that."""
        self._open.close()

    @property
    def goes_on(self) -> bool:
        """Whether there are steps left."""
        return self.step < self._steps

    def at(self, every: int) -> bool:
        """Whether the last step was one of every so many, or the very last."""
        return self.step % every == 0 or not self.goes_on

    def count(self) -> None:
        """Take note that a step has been done."""
        self.step += 1
        self._progress.update()

    def log(self, row: Row, **shown: Any) -> None:
        """Write a line of ``log.jsonl``; what is ``shown`` stands beside the progress bar."""
        self._logs.write({"step": self.step, **row})
        self._progress.set_postfix(**shown, refresh=False)

    def settle(self, *, save: bool, known: dict[str, Any]) -> None:
        """End a step: save if it is time to or if SIGTERM asks to stop, and stop then.

        Raises:
            SystemExit: With 143, after SIGTERM.
        """
        stopping = self._asked.is_set() and self.goes_on
        if save or stopping:
            places, facts = self._folder / "checkpoints", {"identity": self._identity, "step": self.step, **known}
            save_checkpoint(
                places, self._module, self._optimizer, step=self.step, facts=facts, own={}, world=self._world
            )
        if stopping:
            logger.warning("Terminated at step %d of %d; the same command goes on.", self.step, self._steps)
            raise SystemExit(128 + signal.SIGTERM)
