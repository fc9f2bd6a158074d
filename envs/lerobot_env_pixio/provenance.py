"""What made a folder of data: the settings and versions that stand beside it, and that it is reused only for."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

from lerobot_env_pixio.suites import find_suite
from pixio_robot.errors import DataError


def package_versions(suite: str) -> dict[str, str]:
    """Give the versions of the packages that decide how an episode of a suite looks and goes."""
    names = ("lerobot_env_pixio", find_suite(suite).package, "mujoco", "gymnasium", "numpy")
    return {name: version(name) for name in names}


def refuse_other_settings(folder: Path, *, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Let a folder pass only if it was made, or begun, with the wanted settings.

    Raises:
        DataError: It was not; says which settings differ.
    """
    differing = [key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key)]
    if differing:
        listed = "; ".join(f"{key}: {found.get(key)!r} there, {wanted.get(key)!r} wanted" for key in sorted(differing))
        raise DataError(f"{folder} holds data of other settings ({listed}). Choose another folder, or remove this one.")
