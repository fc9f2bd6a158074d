"""What stands beside every measured figure: how, when and on what it was measured."""

import json
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pixio_robot.drafts import write_whole
from pixio_robot.machine import machine_name


def circumstances(device: str = "cpu", *, threads: int | None = None) -> dict[str, Any]:
    """Give this command, now, and this machine with as many of its threads as are used."""
    machine = f"{machine_name(device)}, {platform.system()}"
    return {
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.now(UTC).isoformat(sep=" ", timespec="minutes"),
        "machine": machine if threads is None else f"{machine}, {threads} threads",
    }


def versions(*packages: str) -> dict[str, str]:
    """Give the versions that are installed."""
    return {package: version(package) for package in packages}


def write_figures(path: Path, figures: dict[str, Any]) -> None:
    """Write figures with their circumstances, whole or not at all; the folder is made, too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(figures, indent=2) + "\n")
    print(f"Figures: {path}")
