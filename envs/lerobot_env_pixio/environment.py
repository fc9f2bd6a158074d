"""The gymnasium environment: a task's physics, seen through cameras, with a time limit and a rule of success."""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's names live in a compiled module that the type checker cannot see.)

from collections.abc import Sequence
from typing import Any, Protocol

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from lerobot_env_pixio.meta_world import MetaWorldSimulation
from lerobot_env_pixio.rendering import Cameras
from lerobot_env_pixio.shifts import VisualShift
from lerobot_env_pixio.tasks import Task, find_task
from pixio_robot.errors import SettingError

DEFAULT_CAMERAS = ("corner2", "gripperPOV")

Observation = dict[str, Any]
"""{"pixels": {camera: uint8 [h w 3]}, "agent_pos": float32 [s]}."""


class Simulation(Protocol):
    """What a suite has to bring: physics without pictures, and an expert. `MetaWorldSimulation` is one."""

    model: mujoco.MjModel
    data: mujoco.MjData
    fps: int
    action_low: NDArray[np.float32]
    action_high: NDArray[np.float32]
    position_low: NDArray[np.float32]
    position_high: NDArray[np.float32]
    axes: tuple[str, ...]

    def reset(self, seed: int) -> None:
        """Draw a new scene, fixed by the seed alone."""
        ...

    def step(self, action: NDArray[np.float32]) -> tuple[float, bool]:
        """Take one action [a]; give reward and success."""
        ...

    def position(self) -> NDArray[np.float32]:
        """Give what the robot knows of itself [s]."""
        ...

    def expert_action(self) -> NDArray[np.float32]:
        """Give the scripted expert's next action [a], inside the limits."""
        ...


SIMULATIONS = {"metaworld": MetaWorldSimulation}
"""Suite name to what runs one of its tasks."""


class ManipulationEnv(gymnasium.Env[Observation, NDArray[np.float32]]):
    """One task. An episode ends with the first success, or at the time limit; ``info["is_success"]`` tells which.

    Everything follows the seed given to ``reset``: scene, physics and, with a software renderer, each pixel.
    Stepping on after the end is allowed until the physics' horizon; it shows what happens after a success.

    Args:
        task: The row of the table of tasks.
        cameras: Names of the cameras of an observation; the first one is what ``render`` shows.
        size: Height and width in pixels.
        render: A key of ``RENDER_PRESETS``.
        shift: A key of ``SHIFTS``, or None for the scene's own looks.
        max_episode_steps: The time limit.

    Raises:
        UnknownNameError: An unknown camera, preset or shift.
        SettingError: A time limit beyond the physics' horizon, or a size or cameras that cannot be.
    """

    def __init__(
        self,
        task: Task,
        *,
        cameras: tuple[str, ...],
        size: tuple[int, int],
        render: str,
        shift: str | None,
        max_episode_steps: int,
    ) -> None:
        self.simulation: Simulation = SIMULATIONS[task.suite](task.name)
        if not 1 <= max_episode_steps <= task.horizon:
            raise SettingError(
                f"max_episode_steps={max_episode_steps}: {task.name} runs from 1 to {task.horizon} steps."
            )
        model, data = self.simulation.model, self.simulation.data
        self.cameras = Cameras(model, data, names=cameras, size=size, preset=render)
        self._shift = VisualShift(model, shift) if shift else None
        self.max_episode_steps = self._max_episode_steps = max_episode_steps  # LeRobot reads the underscored one
        self._steps = 0
        self.action_size = len(self.simulation.action_low)
        self.task_description = task.description
        self.render_mode = "rgb_array"
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": self.simulation.fps}
        self.settings = {
            "suite": task.suite,
            "task": task.name,
            "cameras": list(cameras),
            "size": list(size),
            "render": render,
            "shift": shift,
            "max_episode_steps": max_episode_steps,
        }
        image = spaces.Box(0, 255, (*size, 3), np.uint8)
        position = spaces.Box(self.simulation.position_low, self.simulation.position_high)
        self.observation_space = spaces.Dict(
            {"pixels": spaces.Dict(dict.fromkeys(cameras, image)), "agent_pos": position}
        )
        self.action_space = spaces.Box(self.simulation.action_low, self.simulation.action_high)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode. Without a seed, one is drawn from those that the last given seed leads to."""
        super().reset(seed=seed, options=options)
        if seed is None:
            seed = int(self.np_random.integers(2**31))
        self._steps = 0
        self.simulation.reset(seed)
        if self._shift:
            self._shift.redraw(np.random.default_rng([seed, 1]))
            mujoco.mj_forward(self.simulation.model, self.simulation.data)
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
            raise SettingError("An action holds NaN or infinity. Actions are finite, from -1 to 1.")
        total, taken, success = 0.0, 0, False
        for action in actions:
            reward, success = self.act(action)
            total, taken = total + reward, taken + 1
            if success or self._steps >= self.max_episode_steps:
                break
        truncated = self._steps >= self.max_episode_steps
        return self.observe(), total, success, truncated, {"is_success": success, "steps": taken}

    def act(self, action: NDArray[np.float32]) -> tuple[float, bool]:
        """Take one action [a] without looking; give reward and success."""
        self._steps += 1
        return self.simulation.step(action)

    def observe(self) -> Observation:
        """Look through every camera."""
        pixels = {name: self.cameras.color(name) for name in self.cameras.names}
        return {"pixels": pixels, "agent_pos": self.simulation.position()}

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
    cameras: Sequence[str] = DEFAULT_CAMERAS,
    size: int | Sequence[int] = 128,
    render: str = "fast",
    shift: str | None = None,
    max_episode_steps: int | None = None,
) -> ManipulationEnv:
    """Make the environment of a task, such as ``make_env("metaworld", "pick-place-v3")``.

    Args:
        suite: A key of ``TASKS``.
        task: A task of that suite; Meta-World's "-v3" may be left out.
        cameras: Names of the cameras.
        size: Pixels: one number for a square, or (height, width).
        render: "fast" (no shadows, no reflections, no multisampling) or "full".
        shift: None, "mild" or "strong": how much looks and cameras change from episode to episode.
        max_episode_steps: The time limit; None for the task's own.

    Raises:
        UnknownNameError: A name that nothing answers to; carries the nearest one.
        SettingError: A setting that cannot be.
    """
    row = find_task(suite, task)
    height, width = (size, size) if isinstance(size, int) else size
    limit = row.max_episode_steps if max_episode_steps is None else max_episode_steps
    return ManipulationEnv(
        row,
        cameras=tuple(cameras),
        size=(height, width),
        render=render,
        shift=shift,
        max_episode_steps=limit,
    )
