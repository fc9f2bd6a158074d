"""The door: ``pixio-eval task=NAME encoder=NAME data=PATH``, ``pixio-eval report FOLDER``."""

import sys
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

from pixio_pretrain.cli import run_hydra, told, typed
from pixio_pretrain.evaluation.job import EvalConfig, evaluate, read_record
from pixio_pretrain.evaluation.loop import Recipe
from pixio_pretrain.evaluation.tasks import TASKS
from pixio_pretrain.manual import list_settings
from pixio_robot.errors import DataError

PROGRAM = "pixio-eval"
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
    with told(PROGRAM):
        file = evaluate(typed(settings, EvalConfig, "task", TASKS))
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in read_record(file)["metrics"].items())
    sys.stdout.write(f"{metrics}\n{file}\n")


def main() -> None:
    """Start what the words name; what the user got wrong is one line, not a traceback."""
    words = sys.argv[1:]
    if not words or {"-h", "--help"} & set(words):
        sys.stdout.write(usage())
    elif words[0] == "report":
        with told(PROGRAM):
            sys.stdout.write(f"{_report(words[1:])}\n")
    else:
        run_hydra(PROGRAM, _evaluate, words)


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


if __name__ == "__main__":
    main()
