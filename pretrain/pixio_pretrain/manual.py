"""What ``--help`` says, made of the run files' first lines and of the docstrings that name the settings."""

import inspect
import re
import textwrap
from collections.abc import Iterable
from dataclasses import MISSING, Field, fields, is_dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, get_type_hints

from pixio_pretrain.config import RunConfig
from pixio_pretrain.objectives import OBJECTIVES
from pixio_pretrain.plan import PlanConfig, memory

CONF = Path(__file__).parent / "conf"
WIDTH = 110

TRAIN = """usage: pixio-pretrain [train] run=NAME data=PATH [SETTING=VALUE ...]

Train an encoder as a run file says, with any setting changed. Log, checkpoints, and in the end the encoder with its
model card go to folder=FOLDER; a run that was stopped there goes on if the same command is given again.

  torchrun --nproc-per-node 8 -m pixio_pretrain run=NAME ...   several GPUs (or processes)
  pixio-pretrain -m run=NAME objective.mask_block=1,2,4 ...    a sweep, here and one after the other
  pixio-pretrain launcher=slurm run=NAME ...                   a job, or a sweep of jobs, on a SLURM cluster
  pixio-pretrain run=NAME ... --cfg job                        show the settings, train nothing
  pixio-pretrain export FOLDER                                 the encoder of a run that has not ended
"""

PLAN = """usage: pixio-pretrain plan run=NAME [gpus=N] [gpu=KIND] [utilisation=SHARE] [SETTING=VALUE ...]

Say what a run would cost before it is paid for: parameters, floating-point operations (a multiplication and its
addition are two), memory of each GPU under DDP and FSDP2, hours. No data is read and nothing is trained.
"""

NOTES = """
Memory of each of N GPUs. {memory}

This bounds from above what tensors need at once. A CUDA context, communication buffers and fragments come on top;
a plan that fits leaves a tenth for them.
"""


def train_help() -> str:
    """Help of ``train``."""
    sections = [
        TRAIN,
        "Runs:",
        _runs(),
        "Settings and their defaults, which run files change (--cfg job shows the outcome):",
        *_groups(RunConfig),
    ]
    return "\n".join([*sections, *_objectives()])


def plan_help() -> str:
    """Help of ``plan``; how memory is reckoned is said by the docstring of ``memory``."""
    rules = (inspect.getdoc(memory) or "").partition("\n\n")[2].partition("\n\nArgs:")[0]
    sections = [PLAN, "Settings, besides those of a run (pixio-pretrain train --help):", *list_settings(PlanConfig)]
    return "\n".join([*sections, NOTES.format(memory=rules), "Runs:", _runs()])


def run_names() -> list[str]:
    """All run files, by name."""
    return sorted(path.stem for path in (CONF / "run").glob("*.yaml"))


def expectation(name: str) -> str:
    """What a run file's second line, and those that continue it, say of its result."""
    first, *others = (CONF / f"run/{name}.yaml").read_text().splitlines()[1:]
    continued = takewhile(lambda line: line.startswith("#     "), others)
    return " ".join([first.partition("-> ")[2], *(line.lstrip("# ") for line in continued)])


def _runs() -> str:
    return "\n".join(_wrap(name, expectation(name)) for name in run_names()) + "\n"


def _groups(config: type) -> Iterable[str]:
    """Settings of a run, and of each of its groups."""
    yield from list_settings(config)
    types = get_type_hints(config)
    for field in fields(config):
        if is_dataclass(types[field.name]):
            yield from list_settings(types[field.name], prefix=f"{field.name}.")


def _objectives() -> Iterable[str]:
    """Settings of the objectives, once each, under the names of those who have them."""
    users: dict[type, list[str]] = {}
    for name, config in OBJECTIVES.items():
        for ancestor in reversed(config.__mro__):
            if meanings(ancestor):
                users.setdefault(ancestor, []).append(name)
    for ancestor, names in users.items():
        yield f"\nWith objective={'|'.join(names)}:"
        yield from list_settings(ancestor, prefix="objective.")
        for name in names:
            own, common = (
                {one.name: _default(one) for one in fields(config)} for config in (OBJECTIVES[name], ancestor)
            )
            told = [key for key in meanings(ancestor) if key != "name" and key in own]
            differing = [f"{key}={own[key]}" for key in told if own[key] != common[key]]
            if differing:
                yield _wrap(f"but with objective={name}", ", ".join(differing))


def list_settings(config: type, *, prefix: str = "") -> list[str]:
    """List the settings of a dataclass with their defaults and what its docstring says of each, a line each."""
    told = meanings(config)
    known = {field.name: field for field in fields(config)} if is_dataclass(config) else dict.fromkeys(told)
    lines = []
    for name, meaning in told.items():
        if name not in known:
            continue  # of the class, and no setting
        default = _default(known[name])
        shown = "" if default in (MISSING, "???") or is_dataclass(default) else f"={default}"
        lines.append(_wrap(f"{prefix}{name}{shown}", meaning))
    return lines


def _default(setting: Field[Any] | None) -> Any:
    if setting is None:
        return MISSING
    return setting.default if setting.default_factory is MISSING else setting.default_factory()


def meanings(config: type) -> dict[str, str]:
    """What a class's own docstring says of its attributes, but for the groups of settings."""
    attributes = inspect.cleandoc(vars(config).get("__doc__") or "").partition("\nAttributes:\n")[2]
    found = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", attributes, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found if not text.startswith("See ``")}


def _wrap(name: str, text: str) -> str:
    lines = textwrap.wrap(text, WIDTH - 34) or [""]
    first = f"  {name:30}  {lines[0]}" if len(name) <= 30 else f"  {name}\n{'':34}{lines[0]}"
    return "\n".join([first, *(f"{'':34}{line}" for line in lines[1:])])
