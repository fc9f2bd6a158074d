"""What made a folder of data: the settings and versions that stand beside it, and that it is reused only for."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import zarr

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


def reopen_group(folder: Path, *, wanted: dict[str, Any]) -> Any:
    """Open a zarr group, whole or begun, whose attributes are the wanted settings; None where nothing is there yet.

    Args:
        folder: The group's.
        wanted: All its attributes but "complete".

    Raises:
        DataError: The folder holds something else, or a group of other settings.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return None
    try:
        group = zarr.open_group(folder, mode="r+")
    except FileNotFoundError as error:
        raise DataError(f"{folder} is not empty and holds no zarr group. Choose another folder.") from error
    found = {key: value for key, value in group.attrs.asdict().items() if key != "complete"}
    refuse_other_settings(folder, found=found, wanted=wanted)
    return group
