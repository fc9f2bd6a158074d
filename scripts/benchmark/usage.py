"""What ``--help`` says, and how mistakes are answered."""

import inspect
import re
import shlex
import textwrap
from itertools import takewhile
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from benchmark.settings import Benchmark

TIERS = Path(__file__).parent / "conf" / "tier"


def help_text(about: str) -> str:
    """The help: what the command does, tiers by the comments that head their files, settings by their docstrings."""
    tiers = [_entry(path.stem, _heading(path)) for path in sorted(TIERS.glob("*.yaml"))]
    attributes = inspect.cleandoc(Benchmark.__doc__ or "").partition("Attributes:\n")[2]
    settings = [
        _entry(name, " ".join(text.split()))
        for name, text in re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", attributes, re.MULTILINE)
    ]
    shown = "\nSettings, which a tier's file sets and the command line changes (--cfg job shows the outcome):"
    return "\n".join([about.strip(), "\nTiers:", *tiers, shown, *settings])


def explain(error: Exception) -> str:
    """A mistake of the command line in one line: what was given, what would be right, the nearest right thing."""
    from pixio_pretrain.cli import explain as explain_run  # loads PyTorch

    return explain_run(error)


def command() -> str:
    """What was typed, as hydra tells it: in a job of a cluster, ``sys.argv`` is that of the launcher."""
    return shlex.join(["scripts/run_benchmark.py", *HydraConfig.get().overrides.task])


def _heading(tier: Path) -> str:
    comments = takewhile(lambda line: line.startswith("#"), tier.read_text().splitlines()[1:])  # after the package's
    return " ".join(line.lstrip("# ") for line in comments)


def _entry(name: str, text: str) -> str:
    return textwrap.fill(text, 116, initial_indent=f"  {name:<16}", subsequent_indent=" " * 18)
