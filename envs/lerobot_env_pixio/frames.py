"""Pictures for pre-training: every task, a robot that wanders, lights, colours and cameras that change.

They are a zarr v3 group with one row per picture: ``frames`` uint8 [n h w 3], ``episode`` int32 [n], ``task`` int16
[n] and ``camera`` int8 [n], the last two being indices into the attributes ``tasks`` and ``cameras``. One chunk is one
episode. Rows whose episode is -1 are still to be rendered; the attribute ``complete`` says that there are none.

With several looks, every camera sees each moment several times: first as the scene is (``look`` int8 [n] is 0), then in
other lights and colours (1, 2, ...). Nothing else differs, so that a pixel of one shows what it shows in the others.

On request the exact answers stand beside them, float32: ``hand``, ``object``, ``goal`` [n 3], ``depth`` [n g g],
``intrinsics`` [n 3 3] and ``cam2world`` [n 4 4]; units and axes are in each array's attributes (see `truth`).
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lerobot_env_pixio.environment import ManipulationEnv, make_env
from lerobot_env_pixio.provenance import package_versions
from lerobot_env_pixio.scene_sets import Column, Notes, Render, ScenePlan, render_set
from lerobot_env_pixio.shifts import SHIFTS, ShiftLevel
from lerobot_env_pixio.suites import find_suite
from lerobot_env_pixio.tasks import find_tasks
from lerobot_env_pixio.truth import MEANINGS, Oracle, answer_shapes
from pixio_robot.errors import SettingError

logger = logging.getLogger(__name__)

_WANDER = 30  # steps of undirected motion before the expert takes over, at most
_NOISE = (0.2, 1.0)  # standard deviation of the noise on the expert's actions, drawn per episode


@dataclass(frozen=True, kw_only=True)
class _Settings:
    suite: str
    tasks: list[str]
    episodes_per_task: int
    frames_per_episode: int
    cameras: list[str]
    size: list[int]
    render: str
    shift: str | None
    first_seed: int
    stride: list[int]
    truth: bool
    split: str | None
    looks: int

    def columns(self) -> dict[str, Column]:
        """Name the arrays."""
        found = {"frames": Column(shape=(*self.size, 3), dtype="uint8", fill=0)}
        for name, dtype in (("episode", "int32"), ("task", "int16"), ("camera", "int8")):
            found[name] = Column(dtype=dtype, compressed=False)
        if self.looks > 1:
            found["look"] = Column(dtype="int8", compressed=False)
        for name, shape in answer_shapes(*self.size).items() if self.truth else ():
            found[name] = Column(shape=shape, dtype="float32", fill=np.nan, meaning=MEANINGS[name])
        return found

    @contextmanager
    def open_task(self, name: str) -> Iterator[tuple[Render, Notes]]:
        """Make a task ready to be rendered."""
        with ExitStack() as stack:
            env = make_env(
                self.suite,
                name,
                cameras=self.cameras,
                size=self.size,
                render=self.render,
                shift=self.shift,
                split=self.split,
            )
            stack.callback(env.close)
            oracle = stack.enter_context(closing(Oracle(env))) if self.truth else None
            yield partial(_render_episode, env, oracle, self), {}


def render_frames(
    folder: str | Path,
    *,
    suite: str = "metaworld",
    tasks: Sequence[str] | None = None,
    episodes_per_task: int = 20,
    frames_per_episode: int = 15,
    cameras: Sequence[str] | None = None,
    size: int | tuple[int, int] = 128,
    render: str = "fast",
    shift: str | None = "strong",
    first_seed: int = 0,
    stride: tuple[int, int] = (4, 8),
    truth: bool = False,
    split: str | None = None,
    looks: int = 1,
    workers: int = 2,
) -> Path:
    """Render pre-training pictures into a zarr group; a killed run is taken up where it stopped.

    Args:
        folder: Where the group goes. One that is complete and of the same settings is left as it is.
        suite: A key of ``TASKS``.
        tasks: Tasks of that suite, or sets of them; None for all.
        episodes_per_task: Scenes of each task.
        frames_per_episode: Points in time of each episode; every camera looks at each of them.
        cameras: Names of the cameras; None for those of the tasks, which must agree.
        size: Pixels: one number for a square, or (height, width).
        render: A key of ``RENDER_PRESETS``.
        shift: A key of ``SHIFTS``, or None.
        first_seed: Position in the range of seeds kept for pictures; a held-out set starts beyond another's end.
        stride: Fewest and most steps of the expert from one picture to the next, drawn per episode; (4, 8) is 50 to
            100 ms. Pictures that are to differ want more.
        truth: Store the exact answers, too: positions, depth and calibration; Meta-World only.
        split: "train", "test" or None: the looks that the shift draws from.
        looks: How often every camera sees each moment: in the scene's own looks, and in as many others as there are
            more. Of a shift that changes nothing but lights and colours: "looks", "lights" or "colors".
        workers: Processes.

    Returns:
        The folder.

    Raises:
        UnknownNameError: An unknown suite, task, camera, preset or shift.
        SettingError: Numbers that cannot be.
        DataError: The folder holds something else.
    """
    folder = Path(folder)
    rows = find_tasks(suite, "all" if tasks is None else tasks)
    names = [row.name for row in rows]
    if min(episodes_per_task, frames_per_episode, looks, workers) < 1 or not names:
        raise SettingError("Tasks, episodes_per_task, frames_per_episode, looks and workers must be at least 1.")
    if looks > 1 and not _keeps_places(shift):
        known = ", ".join(level for level in SHIFTS if _keeps_places(level))
        raise SettingError(
            f"looks={looks} with shift={shift!r}: looks of a moment differ in lights and colours alone, so that every "
            f"pixel stays where it is. Take one of {known}."
        )
    longest = max(stride) * (frames_per_episode - 1) + _WANDER
    horizon = min(row.horizon for row in rows)
    if not 1 <= stride[0] <= stride[1] or longest > horizon:
        raise SettingError(
            f"stride={tuple(stride)} with {frames_per_episode} pictures: strides rise from at least 1, and an episode "
            f"lasts at most {horizon} steps, of which this takes up to {longest}."
        )
    if cameras is None and len({row.cameras for row in rows}) > 1:
        raise SettingError(
            f"The tasks of {suite!r} are looked at through different cameras: name some, or fewer tasks."
        )
    height, width = (size, size) if isinstance(size, int) else size
    settings = _Settings(
        suite=suite,
        tasks=names,
        episodes_per_task=episodes_per_task,
        frames_per_episode=frames_per_episode,
        cameras=list(rows[0].cameras if cameras is None else cameras),
        size=[height, width],
        render=render,
        shift=shift,
        first_seed=first_seed,
        stride=list(stride),
        truth=truth,
        split=split,
        looks=looks,
    )
    plan = ScenePlan(
        folder=folder,
        tasks=names,
        scenes=episodes_per_task,
        rows=frames_per_episode * looks * len(settings.cameras),
        first_seed=first_seed,
        unit="episode",
        columns=settings.columns(),
        open_task=settings.open_task,
    )
    made_by = {**asdict(settings), "versions": package_versions(suite)}
    if looks == 1:
        del made_by["looks"]  # a set of before there were any is one without
    group = render_set(plan, made_by=made_by, workers=workers)
    logger.info("%d pictures in %s", group["frames"].shape[0], folder)
    return folder


def _render_episode(
    env: ManipulationEnv, oracle: Oracle | None, settings: _Settings, seed: int
) -> dict[str, NDArray[Any]]:
    """Play one episode, first wandering, then with a noisy expert if there is one: each array [rows ...]."""
    random = np.random.default_rng([seed, 2])
    stride, wander = int(random.integers(settings.stride[0], settings.stride[1] + 1)), int(random.integers(_WANDER))
    noise, drift = random.uniform(*_NOISE), np.zeros(env.action_size)
    simulation, has_expert = env.simulation, find_suite(settings.suite).has_expert
    env.reset(seed=seed)
    seen: list[dict[str, NDArray[Any]]] = []
    for step in range(wander + (settings.frames_per_episode - 1) * stride + 1):
        # Smooth: white noise would keep the robot in place.
        drift = 0.9 * drift + random.normal(scale=0.4, size=env.action_size)
        if step < wander or not has_expert:
            action = simulation.rest + simulation.noise * drift
        else:
            action = simulation.expert_action() + noise * simulation.noise * drift
        if step >= wander and (step - wander) % stride == 0:
            for look in range(settings.looks):
                if settings.looks > 1:
                    env.change_looks(int(random.integers(2**31)) if look else None)
                seen.append(_look(env, oracle, look if settings.looks > 1 else None))
        env.act(np.clip(action, simulation.action_low, simulation.action_high).astype(np.float32))
    return {name: np.concatenate([one[name] for one in seen]) for name in seen[0]}


def _look(env: ManipulationEnv, oracle: Oracle | None, look: int | None) -> dict[str, NDArray[Any]]:
    """Look through all cameras: each array [cameras ...]."""
    pictures = np.stack(list(env.observe()["pixels"].values()))
    seen = {"frames": pictures, "camera": np.arange(len(pictures)), **(oracle.answer() if oracle else {})}
    return seen if look is None else seen | {"look": np.full(len(pictures), look)}


def _keeps_places(shift: str | None) -> bool:
    """Whether a shift changes lights and colours, and nothing else."""
    level = SHIFTS.get(shift or "")
    return level is not None and replace(level, light=0.0, lamp=0.0, color=0.0) == ShiftLevel()
