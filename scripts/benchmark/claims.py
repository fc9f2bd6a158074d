"""A folder holds one benchmark only: its settings are written down once, and whatever comes later has to agree."""

import json
from pathlib import Path
from typing import Any

from filelock import FileLock

from benchmark.settings import CONTROLS, Benchmark, Training
from lerobot_env_pixio.provenance import package_versions, refuse_other_settings
from pixio_robot.drafts import write_whole
from pixio_robot.errors import DataError

GROWING = ("arms", "options", "tasks", "policies", "seeds", "training", "datasets", "cameras", "versions")
"""Settings that may gain entries: cells that are there stay what they were."""


def claim(config: Benchmark) -> None:
    """Write down what the folder holds, or check that it is the same, or the same and more.

    Raises:
        DataError: The folder holds a benchmark of other settings; says which.
    """
    path = Path(config.folder) / "settings.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(".settings.lock")):
        wanted = config.identity
        wanted["versions"] = {task.suite: package_versions(task.suite) for task in config.find_tasks()}
        if path.exists():
            found = json.loads(path.read_text())
            refuse_other_settings(path.parent, found=found, wanted=wanted | _unchanged(found, wanted))
            _refuse_other_first_arm(path.parent, found, wanted)
            if found == wanted:
                return
        write_whole(path, json.dumps(wanted, indent=2) + "\n")


def check_report(config: Benchmark) -> None:
    """Refuse a report of other settings than those that the folder was filled in with; nothing is written.

    It may be of fewer arms, tasks, policies or seeds, or of more; what the report's and the folder's have in common has
    to be the same in both. Versions may differ, since nothing is run: the report tells those that records name.

    Raises:
        DataError: The folder holds a benchmark of other settings; says which.
    """
    path = Path(config.folder) / "settings.json"
    if not path.exists():
        return
    found, wanted = json.loads(path.read_text()), config.identity
    if "augmentation" not in found:  # of an earlier version, which did not say; nothing is run here
        wanted.pop("augmentation", None)
    _refuse_other_first_arm(path.parent, found, wanted)
    arms, tasks, policies = ({*found[key]} & {*wanted[key]} for key in ("arms", "tasks", "policies"))
    shown = {*arms, *CONTROLS} - {*wanted["without"]}
    common = {"arms": arms, "options": shown, "training": policies, "datasets": tasks, "cameras": tasks}

    def settled(facts: dict[str, Any]) -> dict[str, Any]:
        whole = {key: value for key, value in facts.items() if key not in (*GROWING, "without")}
        for key, named in common.items():
            whole[key] = {name: value for name, value in facts.get(key, {}).items() if name in named}
        return whole

    refuse_other_settings(path.parent, found=settled(found), wanted=settled(wanted))


def read_benchmark(folder: Path) -> Benchmark:
    """Read what a folder holds.

    Raises:
        DataError: There is no benchmark in it, or one of another version.
    """
    path = folder / "settings.json"
    if not path.is_file():
        raise DataError(f"{folder} is no folder of run_benchmark.py: it has no settings.json.")
    facts = json.loads(path.read_text())
    for told in ("versions", "augmentation"):  # by the machine and the code, not settings
        facts.pop(told, None)
    try:
        facts["training"] = {policy: Training(**sizes) for policy, sizes in facts["training"].items()}
        return Benchmark(folder=str(folder), **facts)
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} is of another version of the benchmark: {error}.") from error


def _refuse_other_first_arm(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    there, here = next(iter(found["arms"])), next(iter(wanted["arms"]))
    if there != here:
        raise DataError(
            f"{folder} compares its arms with {there!r}; here the first arm is {here!r}. Name the same one first, or "
            "choose another folder."
        )


def _unchanged(found: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """Growing settings as they were, where all that was there is still there; a control left out may come back, too.

    What says how an arm or a task differs from the others may be said of new ones alone: cells of the old are there.
    """
    kept: dict[str, Any] = {}
    arms, tasks = {*found["arms"], *CONTROLS} - {*found["without"]}, {*found["tasks"]}
    settled = {"options": arms, "cameras": tasks, "datasets": tasks}
    for key in found.keys() & GROWING:  # a folder of an earlier version may lack some, and is refused by their names
        there, here = found[key], wanted[key]
        if isinstance(there, dict):
            whole = all(here.get(name) == value for name, value in there.items())
            whole = whole and not settled.get(key, set()) & (here.keys() - there.keys())
        else:
            whole = set(there) <= set(here)
        kept |= {key: there} if whole else {}
    if set(wanted["without"]) <= set(found["without"]):
        kept["without"] = found["without"]
    return kept
