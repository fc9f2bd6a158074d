"""The door: ``pixio-eval task=NAME encoder=NAME data=PATH``, ``pixio-eval report FOLDER``."""

import logging
import os
import sys
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pixio_pretrain.cli import FAILED, WRONG_WORDS, explain, quote_place
from pixio_pretrain.evaluation.job import EvalConfig, evaluate, read_record
from pixio_pretrain.evaluation.loop import Recipe
from pixio_pretrain.evaluation.tasks import TASKS
from pixio_pretrain.manual import list_settings
from pixio_robot.errors import DataError, PixioRobotError, UnknownNameError

logger = logging.getLogger(__name__)

USAGE = """usage: pixio-eval task=TASK encoder=NAME data=PATH [SETTING=VALUE ...]
       pixio-eval report FOLDER

Measure a frozen encoder (finetune and detection train a copy of it) by a published protocol. What is measured goes to
a folder of its own, as a record; an evaluation that was stopped goes on if the same command is given again.

  pixio-eval -m task=knn encoder=A,B ...      several encoders, one after the other
  pixio-eval task=knn ... --cfg job           show the settings, measure nothing
  pixio-eval report outputs/eval              a page of all records: intervals, paired differences, pictures
"""

ConfigStore.instance().store(name="eval_schema", node=EvalConfig)
for _name, _node in TASKS.items():
    ConfigStore.instance().store(group="task", name=_name, node=_node)


@hydra.main(version_base="1.3", config_path="../conf", config_name="eval")
def _evaluate(settings: DictConfig) -> None:
    """Evaluate as the settings say."""
    try:
        file = evaluate(_typed(settings))
    except (PixioRobotError, OmegaConfBaseException) as error:
        if HydraConfig.get().mode is RunMode.MULTIRUN:
            raise  # hydra says whose error it is
        raise SystemExit(_say(error)) from error
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in read_record(file)["metrics"].items())
    sys.stdout.write(f"{metrics}\n{file}\n")


def _typed(settings: DictConfig) -> EvalConfig:
    """Make plain dataclasses of the settings; merging into the bare schema refuses what it does not know."""
    if settings.task.name not in TASKS:
        raise UnknownNameError("task", settings.task.name, TASKS)
    schema = OmegaConf.structured(EvalConfig)
    schema.task = TASKS[settings.task.name]()
    config = OmegaConf.to_object(OmegaConf.merge(schema, OmegaConf.to_container(settings)))
    assert isinstance(config, EvalConfig)  # the schema sees to it
    return config


def main() -> None:
    """Start what the words name; what the user got wrong is one line, not a traceback."""
    words = sys.argv[1:]
    if not words or {"-h", "--help"} & set(words):
        sys.stdout.write(usage())
        return
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come here, instead of being printed
    try:
        if words[0] == "report":
            sys.stdout.write(f"{_report(words[1:])}\n")
        else:
            sys.argv[1:] = map(quote_place, words)
            _evaluate()
    except (HydraException, OmegaConfBaseException, PixioRobotError) as error:
        raise SystemExit(_say(error)) from error


def _report(words: list[str]) -> Path:
    from pixio_pretrain.evaluation.report import write_report

    if len(words) != 1:
        raise DataError(f"report takes one folder, such as {EvalConfig().folder}, not {len(words)} words.")
    return write_report(Path(words[0]).expanduser())


def usage() -> str:
    """Help, made of the docstrings that name the settings."""
    parts = [USAGE, "Settings and their defaults:", *list_settings(EvalConfig)]
    for name, config in TASKS.items():
        parts += [
            f"\nWith task={name}: {(config.__doc__ or '').splitlines()[0]}",
            *list_settings(config, prefix="task."),
        ]
    return "\n".join([*parts, "\nRecipes of what is trained:", *list_settings(Recipe, prefix="task.recipe.")]) + "\n"


def _say(error: Exception) -> int:
    sys.stderr.write(f"pixio-eval: {explain(error)}\n")
    return FAILED if isinstance(error, PixioRobotError) else WRONG_WORDS


if __name__ == "__main__":
    main()
