"""Sets of colour and exact depth, seen by several calibrated cameras at once: to train and measure geometry with.

They are a zarr v3 group with one row per moment: ``color`` uint8 [n v h w 3], ``depth`` float32 [n v h w], ``body``
int16 [n v h w], ``intrinsics`` and ``cam2world`` float64 [n v 3 3] and [n v 4 4], ``task`` int16 [n], an index into the
attribute ``tasks``, and ``scene`` int32 [n]. One chunk is one scene. Rows whose scene is -1 are still to be rendered;
the attribute ``complete`` says that there are none. The attributes of ``bodies/TASK`` name the bodies of a task and say
which part of the scene each is. Units and axes are in each array's attributes.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lerobot_env_pixio.provenance import package_versions
from lerobot_env_pixio.rgbd_stage import Stage
from lerobot_env_pixio.scene_sets import Column, Notes, Render, ScenePlan, render_set
from lerobot_env_pixio.suites import refuse_without_expert
from lerobot_env_pixio.tasks import find_tasks
from lerobot_env_pixio.truth import MEANINGS
from pixio_robot.errors import SettingError

logger = logging.getLogger(__name__)

_NOISE = (0.2, 1.0)  # standard deviation of the noise on the expert's actions, drawn per scene
_STEPS = (5, 60)  # of the expert before each moment, drawn for each; the last excluded

_MEANINGS = MEANINGS | {
    "color": "RGB as the renderer gives it, top row first",
    "depth": "metres along the optical axis at each pixel's centre; the sky reads as over 10",
    "body": "index into the names in the attributes of bodies/TASK; -1 where no body is: sky, or a distractor",
}


@dataclass(frozen=True, kw_only=True)
class _Settings:
    suite: str
    tasks: list[str]
    scenes_per_task: int
    moments: int
    cameras: list[str]
    free: int
    size: list[int]
    render: str
    held_out: list[str]
    first_seed: int

    def columns(self) -> dict[str, Column]:
        """Name the arrays."""
        views, size = len(self.cameras) + self.free, tuple(self.size)
        shapes: dict[str, tuple[tuple[int, ...], str, float]] = {
            "color": ((views, *size, 3), "uint8", 0),
            "depth": ((views, *size), "float32", np.nan),
            "body": ((views, *size), "int16", -1),
            "intrinsics": ((views, 3, 3), "float64", np.nan),
            "cam2world": ((views, 4, 4), "float64", np.nan),
            "task": ((), "int16", -1),
            "scene": ((), "int32", -1),
        }
        return {
            name: Column(shape=shape, dtype=dtype, fill=fill, meaning=_MEANINGS.get(name))
            for name, (shape, dtype, fill) in shapes.items()
        }

    @contextmanager
    def open_task(self, name: str) -> Iterator[tuple[Render, Notes]]:
        """Make a task ready to be rendered."""
        height, width = self.size
        stage = Stage(
            self.suite,
            name,
            cameras=self.cameras,
            free=self.free,
            size=(height, width),
            render=self.render,
            held_out=self.held_out,
        )
        with closing(stage):
            bodies = {"names": list(stage.cameras.bodies.values()), "parts": stage.parts()}
            yield partial(_render_scene, stage, self.moments), {f"bodies/{name}": bodies}


def render_rgbd(
    folder: str | Path,
    *,
    suite: str = "metaworld",
    tasks: Sequence[str] | None = None,
    scenes_per_task: int = 20,
    moments: int = 2,
    cameras: Sequence[str] | None = None,
    free: int = 2,
    size: int | tuple[int, int] = 128,
    render: str = "fast",
    held_out: Sequence[str] = (),
    first_seed: int = 0,
    workers: int = 2,
) -> Path:
    """Render a set into a zarr group; a killed run is taken up where it stopped.

    In every scene lamps, colours, textures and cameras are drawn anew, and things stand about that have nothing to do
    with the task. Draws come from one half of all looks, and for the aspects in ``held_out`` from the other half: so a
    set that differs from the training set in one aspect alone shows what that aspect costs. Scenes are held out by
    other tasks and other seeds, which are the caller's to choose; the aspect "scenes" only draws other distractors.

    Args:
        folder: Where the group goes. One that is complete and of the same settings is left as it is.
        suite: A key of ``rgbd_stage.TABLES``.
        tasks: Tasks of that suite, or sets of them; None for all.
        scenes_per_task: Scenes of each task.
        moments: Points in time of each scene; all cameras look at the same moment.
        cameras: Cameras of the model, such as one over the table or on the hand; None for the first of the tasks' own.
        free: Further cameras, anywhere around the table.
        size: Pixels: one number for a square, or (height, width).
        render: A key of ``RENDER_PRESETS``.
        held_out: Of ``rgbd_stage.ASPECTS``.
        first_seed: Position in the range of seeds kept for pictures; a held-out set starts beyond another's end.
        workers: Processes.

    Returns:
        The folder.

    Raises:
        UnknownNameError: An unknown suite, task, camera, preset or aspect.
        SettingError: Numbers that cannot be, or a suite without an expert or a described table.
        DataError: The folder holds something else.
    """
    folder = Path(folder)
    refuse_without_expert(suite)
    rows = find_tasks(suite, "all" if tasks is None else tasks)
    names = [row.name for row in rows]
    if min(scenes_per_task, moments, workers) < 1 or not names:
        raise SettingError("Tasks, scenes_per_task, moments and workers must be at least 1.")
    cameras = rows[0].cameras[:1] if cameras is None else cameras
    if len(cameras) + free < 1:
        raise SettingError(f"cameras={list(cameras)}, free={free}: at least one camera is needed.")
    longest, horizon = moments * (_STEPS[1] - 1), min(row.horizon for row in rows)
    if longest > horizon:
        raise SettingError(
            f"moments={moments}: a scene lasts at most {horizon} steps, of which this takes up to {longest}. "
            f"{horizon // (_STEPS[1] - 1)} moments always fit."
        )
    height, width = (size, size) if isinstance(size, int) else size
    settings = _Settings(
        suite=suite,
        tasks=names,
        scenes_per_task=scenes_per_task,
        moments=moments,
        cameras=list(cameras),
        free=free,
        size=[height, width],
        render=render,
        held_out=sorted(held_out),
        first_seed=first_seed,
    )
    plan = ScenePlan(
        folder=folder,
        tasks=names,
        scenes=scenes_per_task,
        rows=moments,
        first_seed=first_seed,
        unit="scene",
        columns=settings.columns(),
        open_task=settings.open_task,
    )
    made_by = {**asdict(settings), "kind": "rgbd", "versions": package_versions(suite)}
    group = render_set(plan, made_by=made_by, workers=workers)
    logger.info("%d moments of %d views in %s", *group["color"].shape[:2], folder)
    return folder


def _render_scene(stage: Stage, moments: int, seed: int) -> dict[str, NDArray[Any]]:
    """Let the expert work with noise, and look now and then: each array [moments v ...]."""
    random, simulation = np.random.default_rng([seed, 2]), stage.simulation
    noise, drift = random.uniform(*_NOISE), np.zeros(len(simulation.rest))
    stage.reset(seed)
    looks = []
    for _ in range(moments):
        for _ in range(int(random.integers(*_STEPS))):
            drift = 0.9 * drift + random.normal(scale=0.4, size=drift.shape)  # smooth, or the robot would stay put
            action = simulation.expert_action() + noise * simulation.noise * drift
            simulation.step(np.clip(action, simulation.action_low, simulation.action_high).astype(np.float32))
        looks.append(stage.look())
    return {name: np.stack([look[name] for look in looks]) for name in looks[0]}
