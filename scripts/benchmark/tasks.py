"""A task's demonstrations, and whether they are of the environment that policies are measured in."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmark.remembering import make_remembering
from benchmark.settings import Benchmark, task_name
from lerobot_env_pixio import ManipulationEnv, Task, collect_demonstrations, make_env
from lerobot_env_pixio.suites import find_suite
from lerobot_policy_pixio.frames import DatasetFrames
from pixio_robot.errors import DataError, SettingError, UnknownNameError

HISTORY = {"mlp": 3}
"""Observation steps that a policy sees, where it is more than the present."""


def shared_folder(config: Benchmark, task: Task) -> Path:
    """Where the cells of a task keep what they share."""
    return Path(config.folder) / "tasks" / f"{task.suite}-{task.name}"


def environment(
    config: Benchmark, task: Task, *, shift: str | None = None, state: bool = False, policy: str | None = None
) -> Callable[[], ManipulationEnv]:
    """Give what makes the environment of a task, in this process or another."""
    settings: dict[str, Any] = {"cameras": config.cameras_of(task), "size": config.size, "shift": shift, "state": state}
    if policy in HISTORY:
        return partial(make_remembering, task.suite, task.name, steps=HISTORY[policy], **settings)
    return partial(make_env, task.suite, task.name, **settings)


def check_tasks(config: Benchmark) -> None:
    """Refuse tasks that cannot be run, before any is.

    Raises:
        UnknownNameError: An unknown camera.
        SettingError: A task without an expert and without a data set.
        DataError: A data set that is none, or of other cameras, states or actions.
    """
    for task in config.find_tasks():
        features = expected_features(environment(config, task, state=True)())
        folder = config.dataset_of(task)
        if folder is not None:
            given = DatasetFrames(folder).dataset.features
            check_features(given, features, of=str(folder), state="state" in config.controls)
        elif not find_suite(task.suite).has_expert:
            raise SettingError(
                f"{task_name(task)} has no scripted expert. Record demonstrations as a LeRobotDataset with the "
                f"features {', '.join(features)}, and name it: '+datasets={{{task_name(task)}: FOLDER}}'."
            )


def open_demonstrations(config: Benchmark, task: Task) -> DatasetFrames:
    """Open a task's demonstrations, collecting them if nobody has yet."""
    given = config.dataset_of(task)
    if given is not None:
        return DatasetFrames(given, [f"observation.images.{camera}" for camera in config.cameras_of(task)])
    folder = shared_folder(config, task) / "demonstrations"
    collect_demonstrations(
        folder,
        task.suite,
        task.name,
        episodes=config.demonstrations,
        cameras=config.cameras_of(task),
        size=config.size,
        state=True,
        workers=config.workers,
    )
    return DatasetFrames(folder)


def expected_features(env: ManipulationEnv) -> dict[str, tuple[int, ...]]:
    """What an environment observes and takes, under LeRobot's names: shapes by feature."""
    spaces: Any = env.observation_space
    cameras = {f"observation.images.{name}": box.shape for name, box in spaces["pixels"].spaces.items()}
    shapes = {"observation.state": spaces["agent_pos"].shape, "action": env.action_space.shape}
    if "environment_state" in spaces.spaces:
        shapes["observation.environment_state"] = spaces["environment_state"].shape
    return cameras | shapes


def check_features(given: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]], *, of: str, state: bool) -> None:
    """Refuse a data set that is not of an environment. Pictures may be of any size.

    Args:
        given: Features with their shape.
        expected: What the environment has.
        of: Whose features they are, for the message.
        state: Whether the scene's whole state is read.

    Raises:
        UnknownNameError: A camera of the environment is missing; carries the nearest that is there.
        DataError: A state or an action is missing, or of another width.
    """
    for name, shape in expected.items():
        if name == "observation.environment_state" and not state:
            continue
        if name not in given:
            if name == "observation.environment_state":
                raise DataError(
                    f"{of} has no {name!r}, which the control arm 'state' reads. Record it with make_env(..., "
                    "state=True), or leave the arm out: without=[state]."
                )
            raise UnknownNameError(f"feature of {of}", name, given)
        found = tuple(given[name]["shape"])
        if found != tuple(shape) and not name.startswith("observation.images."):
            raise DataError(f"{of} has {name!r} of shape {list(found)}; the environment's is {list(shape)}.")
