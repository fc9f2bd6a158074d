"""Sets of colour and exact depth, seen by several calibrated cameras at once: to train and measure geometry with.

They are a zarr v3 group with one row per moment: ``color`` uint8 [n v h w 3], ``depth`` float32 [n v h w], ``body``
int16 [n v h w], ``intrinsics`` and ``cam2world`` float64 [n v 3 3] and [n v 4 4], ``task`` int16 [n], an index into the
attribute ``tasks``, and ``scene`` int32 [n]. One chunk is one scene. Rows whose scene is -1 are still to be rendered;
the attribute ``complete`` says that there are none. The attributes of ``bodies/TASK`` name the bodies of a task and say
which part of the scene each is. Units and axes are in each array's attributes.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from tqdm import tqdm
from zarr.codecs import ZstdCodec

from lerobot_env_pixio import seeds
from lerobot_env_pixio.processes import run_jobs
from lerobot_env_pixio.provenance import package_versions, reopen_group
from lerobot_env_pixio.rgbd_stage import Stage
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

    def stage(self, task: str) -> Stage:
        height, width = self.size
        return Stage(
            self.suite,
            task,
            cameras=self.cameras,
            free=self.free,
            size=(height, width),
            render=self.render,
            held_out=self.held_out,
        )


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
    seeds.draw(seeds.FRAMES, len(names) * scenes_per_task, first=first_seed)
    for name in names:
        settings.stage(name).close()  # bad names fail here, before long work
    group = _open(folder, settings)
    _fill(folder, group, settings, workers=workers)
    group.attrs["complete"] = True
    logger.info("%d moments of %d views in %s", *group["color"].shape[:2], folder)
    return folder


def _open(folder: Path, settings: _Settings) -> Any:
    """Open the group, or create it with its arrays at full length."""
    made_by = {**asdict(settings), "kind": "rgbd", "versions": package_versions(settings.suite)}
    group = reopen_group(folder, wanted=made_by)
    if group is not None:
        return group
    group = zarr.create_group(folder, attributes={**made_by, "complete": False})
    rows = len(settings.tasks) * settings.scenes_per_task * settings.moments
    views, size = len(settings.cameras) + settings.free, tuple(settings.size)
    shapes: dict[str, tuple[tuple[int, ...], str, float]] = {
        "color": ((views, *size, 3), "uint8", 0),
        "depth": ((views, *size), "float32", np.nan),
        "body": ((views, *size), "int16", -1),
        "intrinsics": ((views, 3, 3), "float64", np.nan),
        "cam2world": ((views, 4, 4), "float64", np.nan),
        "task": ((), "int16", -1),
        "scene": ((), "int32", -1),
    }
    for name, (shape, dtype, fill) in shapes.items():
        array = {"shape": (rows, *shape), "chunks": (settings.moments, *shape), "dtype": dtype, "fill_value": fill}
        made = group.create_array(name, **array, compressors=ZstdCodec(level=1))
        if name in _MEANINGS:
            made.attrs["meaning"] = _MEANINGS[name]
    return group


def _fill(folder: Path, group: Any, settings: _Settings, *, workers: int) -> None:
    """Render the scenes that are missing, one task per job so that each model is compiled once."""
    done = np.asarray(group["scene"][:: settings.moments]) >= 0
    per_task = done.reshape(len(settings.tasks), settings.scenes_per_task)
    jobs = [
        (folder, settings, task, np.flatnonzero(~row).tolist()) for task, row in enumerate(per_task) if not row.all()
    ]
    with tqdm(total=done.size, initial=int(done.sum()), desc="render", unit="scene") as progress:
        for rendered in run_jobs(_render_task, jobs, workers=workers):
            progress.update(rendered)


def _render_task(job: tuple[Path, _Settings, int, list[int]]) -> int:
    folder, settings, task, missing = job
    group: Any = zarr.open_group(folder, mode="r+")
    stage = settings.stage(settings.tasks[task])
    names = group.require_group(f"bodies/{settings.tasks[task]}")
    names.attrs.update({"names": list(stage.cameras.bodies.values()), "parts": stage.parts()})
    for number in missing:
        scene = task * settings.scenes_per_task + number
        where = slice(scene * settings.moments, (scene + 1) * settings.moments)
        for name, rows in _render_scene(stage, seeds.FRAMES[settings.first_seed + scene], settings.moments).items():
            group[name][where] = rows
        group["task"][where] = task
        group["scene"][where] = scene  # last: it marks the scene as whole
    stage.close()
    return len(missing)


def _render_scene(stage: Stage, seed: int, moments: int) -> dict[str, NDArray[Any]]:
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
