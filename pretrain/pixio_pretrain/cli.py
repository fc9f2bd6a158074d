"""The door: ``pixio-pretrain [train] run=NAME data=PATH``, and the other commands: ``pixio-pretrain --help``."""

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from pixio_pretrain.config import RunConfig
from pixio_pretrain.manual import plan_help, train_help
from pixio_pretrain.objectives import OBJECTIVES
from pixio_pretrain.plan import PlanConfig, plan
from pixio_robot.errors import PixioRobotError, UnknownNameError

logger = logging.getLogger(__name__)

ConfigStore.instance().store(name="schema", node=RunConfig)
ConfigStore.instance().store(name="plan_schema", node=PlanConfig)
for _name, _node in OBJECTIVES.items():
    ConfigStore.instance().store(group="objective", name=_name, node=_node)

PROGRAM = "pixio-pretrain"
WRONG_WORDS, FAILED = 2, 1

PLACES = ("data", "folder", "encoder", "curation.table", "objective.teacher")
"""Settings that are paths or names of weights."""


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def _train(settings: DictConfig) -> None:
    """Train as the settings say."""
    from pixio_pretrain.training import train

    with told(PROGRAM):
        _join_slurm()
        train(typed(settings, RunConfig, "objective", OBJECTIVES), command=_command())


@hydra.main(version_base="1.3", config_path="conf", config_name="plan")
def _plan(settings: DictConfig) -> None:
    """Print what a run would cost."""
    with told(PROGRAM):
        sys.stdout.write(plan(typed(settings, PlanConfig, "objective", OBJECTIVES)) + "\n")


def _score(words: Sequence[str]) -> None:
    from pixio_pretrain.curation.command import main as score

    score(words)


def _with_hydra(task: Callable[[], None], manual: Callable[[], str]) -> Callable[[Sequence[str]], None]:
    """Make a command of a hydra task."""

    def start(words: Sequence[str]) -> None:
        if {"-h", "--help"} & set(words):
            sys.stdout.write(manual())
        else:
            run_hydra(PROGRAM, task, words)

    return start


def run_hydra(program: str, task: Callable[[], None], words: Sequence[str]) -> None:
    """Start a hydra task, which reads its words where the interpreter puts them."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come here, instead of being printed
    sys.argv[1:] = map(quote_place, words)
    with told(program):
        task()


def quote_place(word: str) -> str:
    """Put quotes around a place: to hydra's grammar 2024_10 is a number, {a} a dictionary, and ~ or é an error.

    What is quoted stays as it is, and so do null, interpolations, and a sweep: commas that no braces are around.
    """
    key, _, value = word.partition("=")
    if key.lstrip("+") not in PLACES or value in ("", "null") or value[0] in "\"'" or "${" in value:
        return word
    if "," in re.sub(r"{[^{}]*}", "", value):
        return word
    quote = "'" if '"' in value else '"'
    return f"{key}={quote}{value}{quote}"


def _export(words: Sequence[str]) -> None:
    from pixio_pretrain.export import main as export

    export(words)


class Command(NamedTuple):
    """A word after ``pixio-pretrain``.

    Attributes:
        meaning: One line.
        start: Takes the other words.
    """

    meaning: str
    start: Callable[[Sequence[str]], None]


COMMANDS = {
    "train": Command("train an encoder on your own frames (the default)", _with_hydra(_train, train_help)),
    "plan": Command("say what a run would cost: size, memory, hours", _with_hydra(_plan, plan_help)),
    "export": Command("write the encoder of a run that has not ended", _export),
    "score": Command("score images, so that training can pick among them", _score),
}


def main() -> None:
    """Start the command that the words name; what the user got wrong is one line, not a traceback."""
    first, *others = sys.argv[1:] or ["--help"]
    if first in COMMANDS:
        COMMANDS[first].start(others)
    elif first in ("-h", "--help"):
        listed = "".join(f"  {name:8}{command.meaning}\n" for name, command in COMMANDS.items())
        sys.stdout.write(f"usage: pixio-pretrain [COMMAND] ...   (pixio-pretrain COMMAND --help)\n\n{listed}")
    elif "=" in first or first.startswith("-"):
        COMMANDS["train"].start([first, *others])
    else:
        raise SystemExit(say(PROGRAM, UnknownNameError("command", first, COMMANDS)))


@contextmanager
def told(program: str) -> Iterator[None]:
    """End a program with one line for what the user got wrong; in a sweep hydra gets the error, and says whose it is.

    Raises:
        SystemExit: With the code that ``say`` gives.
    """
    try:
        yield
    except (HydraException, OmegaConfBaseException, PixioRobotError) as error:
        if HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN:
            raise
        raise SystemExit(say(program, error)) from error


def say(program: str, error: Exception) -> int:
    """Write an error to stderr, on one line; give the exit code: 2 for words that there are not, 1 for the rest."""
    sys.stderr.write(f"{program}: {explain(error)}\n")
    wrong = isinstance(error, UnknownNameError) or not isinstance(error, PixioRobotError)
    return WRONG_WORDS if wrong else FAILED


def typed[Config](settings: DictConfig, kind: type[Config], group: str, choices: Mapping[str, type[Any]]) -> Config:
    """Make plain dataclasses of the settings. Hydra lets "+stepps=2" pass; merging into the bare schema refuses it.

    Args:
        settings: As hydra composed them.
        kind: The dataclass.
        group: Its field that is one of several dataclasses.
        choices: These, by name.

    Raises:
        UnknownNameError: If there is no such choice.
        OmegaConfBaseException: If a setting is unknown, missing, or of another type.
        SettingError: If a dataclass refuses its values.
    """
    if settings[group].name not in choices:
        raise UnknownNameError(group, settings[group].name, choices)
    schema = OmegaConf.structured(kind)
    schema[group] = choices[settings[group].name]()
    config = OmegaConf.to_object(OmegaConf.merge(schema, OmegaConf.to_container(settings)))
    assert isinstance(config, kind)  # the schema sees to it
    return config


def explain(error: Exception) -> str:
    """What was given, what would be right, the nearest right thing; hydra spreads this over several errors."""
    if isinstance(error, PixioRobotError):
        return str(error)
    cause: Any = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(cause, (ConfigAttributeError, ConfigKeyError)) and is_dataclass(cause.object_type):
        group = str(cause.full_key).rpartition(".")[0]
        kind = f"setting of {group}" if group else "setting"
        return str(UnknownNameError(kind, str(cause.key), [field.name for field in fields(cause.object_type)]))
    if isinstance(cause, (ConfigAttributeError, ConfigKeyError)):  # of a dictionary, which takes any name
        return f"There is no {cause.full_key} yet: write +{cause.full_key}=... to add it."
    if foreign := re.search(r"In 'run/(\w+)': Config\w+Error.*\nKey '(\w+)' not in '(\w+)'", str(error)):
        run, setting, objective = foreign.groups()
        return (
            f"run={run} sets objective.{setting}, which {objective} does not have: take a run of that objective "
            "instead (pixio-pretrain train --help lists them), and change what differs."
        )
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        if name.startswith("submitit"):
            return "launcher=slurm needs a plug-in of hydra: pip install 'pixio-pretrain[slurm]'."
        return str(UnknownNameError(group, name, error.options or []))
    if isinstance(cause, MissingMandatoryValue):
        return f"{cause.full_key} is missing: add {cause.full_key}=..."
    setting = f"{cause.full_key}: " if getattr(cause, "full_key", None) else ""
    if "is not a ListConfig" in str(cause):
        return f"{setting}a list is wanted, as in '{cause.full_key}=[VALUE]'."
    lines = [line.strip() for line in str(cause).splitlines()]
    skipped = ("full_key", "object_type", "reference_type", "See https")
    return setting + " ".join(line for line in lines if line and not line.startswith(skipped))


def _join_slurm() -> None:
    """Tell PyTorch of the other tasks of a SLURM job, as ``torchrun`` would."""
    if "SUBMITIT_EXECUTOR" in os.environ and "WORLD_SIZE" not in os.environ:
        import submitit

        if submitit.JobEnvironment().num_tasks > 1:
            submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False)


def _command() -> str:
    """What was typed, less the places on this machine."""
    overrides = HydraConfig.get().overrides.task
    kept = [override for override in overrides if not override.startswith(("data=", "folder="))]
    return " ".join(["pixio-pretrain", *kept, "data=PATH"])
