"""MuJoCo tasks, scripted experts, rollouts and statistics for LeRobot.

A map, callers above callees:

- Doors: ``registration`` (``gymnasium.make``), ``configs`` (``--env.type``), or ``make_env`` itself.
- ``environment`` is the one environment: a ``simulation`` with ``rendering`` and, where asked for, ``shifts`` of its
  looks (``draws``, ``textures``, ``distractors``).
- ``tasks`` names every task, ``suites`` who runs it: ``meta_world``, ``aloha`` (with ``aloha_expert``), ``adroit``
  and ``control_suite`` (both on ``joints``).
- Episodes: ``demos`` are the expert's, ``rollouts`` a policy's (in a ``fleet`` of ``processes``); ``records``,
  ``videos`` and ``seeds`` belong to them, ``provenance`` to all that lies on disk.
- Numbers: ``statistics`` for one trained policy, ``crossed`` for several seeds, ``planning`` for how many episodes;
  ``coverage`` simulates whether intervals hold, ``expert_table`` measures experts.
- Pictures for pre-training and geometry: ``frames`` and ``rgbd`` (``rgbd_stage``) fill ``scene_sets``; ``truth`` is
  what they show.
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

import gymnasium
from gymnasium.envs.registration import WrapperSpec

if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
    os.environ.setdefault("MUJOCO_GL", "egl")  # MuJoCo reads it once, on import; its own default needs a display

from lerobot_env_pixio.tasks import TASKS, Task, find_task, find_tasks

if TYPE_CHECKING:
    from lerobot_env_pixio.crossed import paired_pooled, pooled
    from lerobot_env_pixio.demos import collect_demonstrations
    from lerobot_env_pixio.environment import ManipulationEnv, make_env
    from lerobot_env_pixio.frames import render_frames
    from lerobot_env_pixio.gl import check_rendering
    from lerobot_env_pixio.planning import episodes_needed, measured_correlation
    from lerobot_env_pixio.records import EpisodeRecord, read_records, write_records
    from lerobot_env_pixio.rgbd import render_rgbd
    from lerobot_env_pixio.rollouts import rollout
    from lerobot_env_pixio.statistics import paired, wilson

# Public names by module, imported on first use: one who only wants a rate need not load MuJoCo.
_HOMES = {
    "crossed": ("paired_pooled", "pooled"),
    "demos": ("collect_demonstrations",),
    "environment": ("ManipulationEnv", "make_env"),
    "gl": ("check_rendering",),
    "frames": ("render_frames",),
    "planning": ("episodes_needed", "measured_correlation"),
    "records": ("EpisodeRecord", "read_records", "write_records"),
    "rgbd": ("render_rgbd",),
    "rollouts": ("rollout",),
    "statistics": ("paired", "wilson"),
}
_LAZY = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "TASKS",
    "EpisodeRecord",
    "ManipulationEnv",
    "Task",
    "check_rendering",
    "collect_demonstrations",
    "episodes_needed",
    "find_task",
    "find_tasks",
    "make_env",
    "measured_correlation",
    "paired",
    "paired_pooled",
    "pooled",
    "read_records",
    "render_frames",
    "render_rgbd",
    "rollout",
    "wilson",
    "write_records",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)


for _task in (task for tasks in TASKS.values() for task in tasks.values()):
    gymnasium.register(
        id=_task.gym_id,
        entry_point=f"{__name__}.registration:make_registered",
        # Gymnasium's own time limit is the one that counts there, so that whoever makes the environment can change it.
        max_episode_steps=_task.max_episode_steps,
        kwargs={"suite": _task.suite, "task": _task.name},
        additional_wrappers=(WrapperSpec("WithinHorizon", f"{__name__}.registration:WithinHorizon", kwargs={}),),
    )

# LeRobot finds this package by its name and imports it to have its environments registered. That is the one case in
# which its configurations, which take seconds to import, are needed here: a worker process has no LeRobot loaded.
if "lerobot" in sys.modules:
    importlib.import_module(f"{__name__}.configs")
