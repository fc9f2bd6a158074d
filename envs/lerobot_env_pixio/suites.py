"""The suites: which library runs each, and whether it brings an expert.

A suite's simulation is imported on first use, so that one needs the libraries of the suites that one uses only.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from lerobot_env_pixio.simulation import Simulation
from pixio_robot.errors import SettingError, UnknownNameError


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    """One row of the table of suites.

    Attributes:
        simulation: ``module:class`` in this package; called with a task's name, it gives a ``Simulation``.
        package: The distribution whose version decides how its episodes go.
        extra: The extra of this distribution that installs it; None if it always is.
        has_expert: Whether it brings a scripted expert for every task.
        megabytes: Memory that one of its environments takes once it has rendered a picture, textures included.
    """

    simulation: str
    package: str
    extra: str | None
    has_expert: bool
    megabytes: int


SUITES = {
    "metaworld": Suite(
        simulation="meta_world:MetaWorldSimulation",
        package="metaworld",
        extra=None,
        has_expert=True,
        megabytes=210,
    ),
    "adroit": Suite(
        simulation="adroit:AdroitSimulation",
        package="gymnasium-robotics",
        extra="adroit",
        has_expert=False,
        megabytes=180,
    ),
    "dmcontrol": Suite(
        simulation="control_suite:ControlSuiteSimulation",
        package="dm-control",
        extra="dmcontrol",
        has_expert=False,
        megabytes=80,
    ),
    "aloha": Suite(
        simulation="aloha:AlohaSimulation",
        package="gym-aloha",
        extra="aloha",
        has_expert=True,
        megabytes=110,
    ),
}
"""Suite name to suite."""


def find_suite(name: str) -> Suite:
    """Look a suite up.

    Raises:
        UnknownNameError: No such suite; carries the nearest name.
    """
    if name not in SUITES:
        raise UnknownNameError("suite", name, SUITES)
    return SUITES[name]


def load_simulation(name: str) -> Callable[[str], Simulation]:
    """Import what runs a suite's tasks.

    Raises:
        UnknownNameError: No such suite.
        SettingError: Its library is not installed; says how to install it.
    """
    suite = find_suite(name)
    module, _, simulation = suite.simulation.partition(":")
    try:
        return getattr(importlib.import_module(f"lerobot_env_pixio.{module}"), simulation)
    except ModuleNotFoundError as error:
        install = f"lerobot_env_pixio[{suite.extra}]" if suite.extra else suite.package
        raise SettingError(f"The suite {name!r} needs {suite.package}: pip install '{install}' ({error}).") from error


def refuse_without_expert(name: str) -> None:
    """Let a suite pass only if it brings an expert.

    Raises:
        SettingError: It brings none; says where demonstrations come from instead.
    """
    if not find_suite(name).has_expert:
        able = ", ".join(sorted(other for other, suite in SUITES.items() if suite.has_expert))
        raise SettingError(
            f"The suite {name!r} has no scripted expert. Its demonstrations come from a LeRobotDataset of yours, with "
            f"the features that this environment observes. Suites with an expert: {able}."
        )
