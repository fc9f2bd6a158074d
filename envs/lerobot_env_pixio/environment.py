"""The gymnasium environment: a task's physics, seen through cameras, with a time limit and a rule of success."""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from lerobot_env_pixio.rendering import Cameras
from lerobot_env_pixio.shifts import VisualShift
from lerobot_env_pixio.suites import load_simulation
from lerobot_env_pixio.tasks import Task, find_task
from pixio_robot.errors import SettingError

Observation = dict[str, Any]
"""{"pixels": {camera: uint8 [h w 3]}, "agent_pos": float32 [a]}, and "environment_state": float32 [s] if asked for."""

Size = int | Sequence[int]
"""Pixels: one number for a square, or (height, width)."""


class ManipulationEnv(gymnasium.Env[Observation, NDArray[np.float32]]):
    """One task. An episode ends with the first success, or at the time limit; ``info["is_success"]`` tells which.

    A task that cannot be solved once and for all, only done well all the time, ends at the time limit; success says
    whether it has been done well so far, see `Task`.

    Everything follows the seed given to ``reset``: scene, physics and, with a software renderer, each pixel.
    Stepping on after the end is allowed until the physics' horizon; it shows what happens after a success.

    Args:
        task: The row of the table of tasks.
        sizes: Cameras of an observation, each with height and width in pixels; the first one is what ``render`` shows.
        render: A key of ``RENDER_PRESETS``.
        shift: A key of ``SHIFTS``, or None for the scene's own looks.
        split: "train" or "test" for looks that the other never shows, or None for all that the shift can give.
        max_episode_steps: The time limit.
        state: Whether observations hold the scene's whole state, as no robot knows it.

    Raises:
        UnknownNameError: An unknown camera, preset, shift or split.
        SettingError: A time limit beyond the physics' horizon, a size or cameras that cannot be, or a library that is
            not installed.
    """

    def __init__(
        self,
        task: Task,
        *,
        sizes: Mapping[str, tuple[int, int]],
        render: str,
        shift: str | None,
        split: str | None,
        max_episode_steps: int,
        state: bool,
    ) -> None:
        if split is not None and shift is None:
            raise SettingError(f"split={split!r} without a shift: a scene's own looks cannot be split. Name a shift.")
        if not 1 <= max_episode_steps <= task.horizon:
            raise SettingError(
                f"max_episode_steps={max_episode_steps}: {task.name} runs from 1 to {task.horizon} steps."
            )
        self.simulation = load_simulation(task.suite)(task.name)
        self.cameras = Cameras(self.simulation.model, self.simulation.data, sizes=sizes, preset=render)
        self._shift = VisualShift(self.simulation, self.cameras, shift, split) if shift else None
        self._task = task
        self.max_episode_steps = self._max_episode_steps = max_episode_steps  # LeRobot reads the underscored one
        self._steps, self._earned, self._passed = 0, 0.0, 0
        self.action_size = len(self.simulation.action_low)
        self.task, self.task_description = task.name, task.description  # LeRobot asks for both
        self.render_mode = "rgb_array"
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": task.fps}
        one_size = len(set(sizes.values())) == 1
        self.settings = {
            "suite": task.suite,
            "task": task.name,
            "cameras": list(sizes),
            "size": list(next(iter(sizes.values())))
            if one_size
            else {name: list(size) for name, size in sizes.items()},
            "render": render,
            "shift": shift,
            "max_episode_steps": max_episode_steps,
        }
        if split is not None:  # records from before there were splits have no such key
            self.settings["split"] = split
        if state:  # nor this one
            self.settings["state"] = True
        images: dict[str, spaces.Space[Any]] = {
            name: spaces.Box(0, 255, (*size, 3), np.uint8) for name, size in sizes.items()
        }
        position = spaces.Box(self.simulation.position_low, self.simulation.position_high)
        space: dict[str, spaces.Space[Any]] = {"pixels": spaces.Dict(images), "agent_pos": position}
        self._state = state
        if state:
            self.simulation.reset(0)  # before which there is no state to measure
            space["environment_state"] = spaces.Box(-np.inf, np.inf, self.simulation.state().shape, np.float32)
        self.observation_space = spaces.Dict(space)
        self.action_space = spaces.Box(self.simulation.action_low, self.simulation.action_high)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode. Without a seed, one is drawn from those that the last given seed leads to."""
        super().reset(seed=seed, options=options)
        if seed is None:
            seed = int(self.np_random.integers(2**31))
        self._steps, self._earned, self._passed = 0, 0.0, 0
        self.simulation.reset(seed)
        if self._shift:
            self._shift.redraw(seed)
        return self.observe(), {"is_success": False, "seed": seed}

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Take one action [a] and look."""
        return self.advance(np.asarray(action)[None])

    def advance(self, actions: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Take a chunk of actions [k a] with eyes shut, up to the end of the episode at most, and look once.

        Pictures are most of an episode's cost, so what nobody looks at is not rendered.

        Returns:
            Like ``step``: the last observation, the sum of the rewards, terminated, truncated and info, where
            ``info["steps"]`` counts the actions that were taken.

        Raises:
            SettingError: Actions of another shape, none at all, or not finite.
        """
        actions = np.asarray(actions, np.float32)
        if actions.ndim != 2 or len(actions) == 0 or actions.shape[1] != self.action_size:
            raise SettingError(
                f"Actions of shape {list(actions.shape)}: this task takes [k {self.action_size}], k >= 1."
            )
        if not np.isfinite(actions).all():
            raise SettingError("An action holds NaN or infinity. Actions are finite, inside the action space.")
        total, taken, success, terminated = 0.0, 0, False, False
        for action in actions:
            reward, success = self.act(action)
            total, taken = total + reward, taken + 1
            terminated = success and self._task.target_reward is None
            if terminated or self._steps >= self.max_episode_steps:
                break
        truncated = self._steps >= self.max_episode_steps
        return self.observe(), total, terminated, truncated, {"is_success": success, "steps": taken}

    def act(self, action: NDArray[np.float32]) -> tuple[float, bool]:
        """Take one action [a] without looking; give reward and success."""
        reward, success = self.simulation.step(action)
        self._steps, self._earned = self._steps + 1, self._earned + reward
        self._passed = max(self._passed, self.simulation.passed())
        if self._task.target_reward is not None:
            success = self._earned >= self._task.target_reward * self._steps
        return reward, success

    @property
    def milestone(self) -> str | None:
        """The furthest of the task's milestones that this episode passed, "" before the first; None if it has none."""
        known = self._task.milestones
        return ("", *known)[min(self._passed, len(known))] if known else None

    def change_looks(self, seed: int | None) -> None:
        """Change how the scene looks in the midst of an episode, as another one would; None gives it its own looks.

        Raises:
            SettingError: There is no shift to draw from.
        """
        if self._shift is None:
            raise SettingError("shift=None draws no looks: name a shift, such as shift='looks'.")
        if seed is None:
            self._shift.restore()
        else:
            self._shift.redraw(seed)

    def observe(self) -> Observation:
        """Look through every camera, and at the state where that is asked for."""
        pixels = {name: self.cameras.color(name) for name in self.cameras.names}
        seen: Observation = {"pixels": pixels, "agent_pos": self.simulation.position()}
        return seen | {"environment_state": self.simulation.state()} if self._state else seen

    def render(self) -> NDArray[np.uint8]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Give the first camera's picture, RGB [h w 3]."""
        return self.cameras.color(self.cameras.names[0])

    def close(self) -> None:
        """Free the renderer."""
        self.cameras.close()


def make_env(
    suite: str,
    task: str,
    *,
    cameras: Sequence[str] | None = None,
    size: Size | Mapping[str, Size] = 128,
    render: str = "fast",
    shift: str | None = None,
    max_episode_steps: int | None = None,
    split: str | None = None,
    state: bool = False,
) -> ManipulationEnv:
    """Make the environment of a task, such as ``make_env("metaworld", "pick-place-v3")``.

    Args:
        suite: A key of ``TASKS``.
        task: A task of that suite; Meta-World's "-v3" may be left out.
        cameras: Names of the cameras; None for the task's own.
        size: Pixels: one number for a square, or (height, width); or either for each camera by name.
        render: "fast" (no shadows, no reflections, no multisampling) or "full".
        shift: None, or how looks and cameras change from episode to episode: "mild", "strong" or another of ``SHIFTS``.
        max_episode_steps: The time limit; None for the task's own.
        split: "train" or "test": draw from one half of the looks that the shift can give, which the other never shows.
        state: Add "environment_state": what the suite's library itself observes of the scene, goal included. It is for
            controls that show how much of a failure is the eyes'.

    Raises:
        UnknownNameError: A name that nothing answers to; carries the nearest one.
        SettingError: A setting that cannot be, or a suite whose library is not installed.
    """
    row = find_task(suite, task)
    names = row.cameras if cameras is None else tuple(cameras)
    if len(set(names)) < len(names):
        raise SettingError(f"cameras={names}: name none twice.")
    limit = row.max_episode_steps if max_episode_steps is None else max_episode_steps
    return ManipulationEnv(
        row,
        sizes=camera_sizes(names, size),
        render=render,
        shift=shift,
        split=split,
        max_episode_steps=limit,
        state=state,
    )


def camera_sizes(cameras: Sequence[str], size: Size | Mapping[str, Size]) -> dict[str, tuple[int, int]]:
    """Give every camera its height and width.

    Raises:
        SettingError: Sizes by camera that name other cameras, or no size at all.
    """
    if isinstance(size, Mapping):
        if set(size) != set(cameras):
            raise SettingError(f"size names the cameras {sorted(size)}; those in use are {sorted(cameras)}.")
        return {name: camera_sizes([name], size[name])[name] for name in cameras}
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2:
        raise SettingError(f"size={size}: give one number for a square, or (height, width).")
    return dict.fromkeys(cameras, (int(pair[0]), int(pair[1])))
