"""Pictures for pre-training: every task, a robot that wanders, lights, colours and cameras that change.

They are a zarr v3 group with one row per picture: ``frames`` uint8 [n h w 3], ``episode`` int32 [n], ``task`` int16
[n] and ``camera`` int8 [n], the last two being indices into the attributes ``tasks`` and ``cameras``. One chunk is one
episode. Rows whose episode is -1 are still to be rendered; the attribute ``complete`` says that there are none.

On request the exact answers stand beside them, float32: ``hand``, ``object``, ``goal`` [n 3], ``depth`` [n g g],
``intrinsics`` [n 3 3] and ``cam2world`` [n 4 4]; units and axes are in each array's attributes (see `truth`).
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from tqdm import tqdm
from zarr.codecs import ZstdCodec

from lerobot_env_pixio import seeds
from lerobot_env_pixio.environment import ManipulationEnv, make_env
from lerobot_env_pixio.processes import run_jobs
from lerobot_env_pixio.provenance import package_versions, reopen_group
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
    stride: list[int] = field(default_factory=lambda: [4, 8])
    truth: bool = False
    split: str | None = None

    @property
    def rows(self) -> int:
        """Rows of one episode: frames times cameras."""
        return self.frames_per_episode * len(self.cameras)


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
    if min(episodes_per_task, frames_per_episode, workers) < 1 or not names:
        raise SettingError("Tasks, episodes_per_task, frames_per_episode and workers must be at least 1.")
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
    )
    seeds.draw(seeds.FRAMES, len(names) * episodes_per_task, first=first_seed)
    for name in names:
        _make(settings, name).close()  # bad names fail here, before long work
    group = _open(folder, settings)
    _fill(folder, group, settings, workers=workers)
    group.attrs["complete"] = True
    logger.info("%d pictures in %s", group["frames"].shape[0], folder)
    return folder


def _make(settings: _Settings, task: str) -> ManipulationEnv:
    return make_env(
        settings.suite,
        task,
        cameras=settings.cameras,
        size=settings.size,
        render=settings.render,
        shift=settings.shift,
        split=settings.split,
    )


def _open(folder: Path, settings: _Settings) -> Any:
    """Open the group, or create it with its arrays at full length."""
    made_by = {**asdict(settings), "versions": package_versions(settings.suite)}
    group = reopen_group(folder, wanted=made_by, unnamed={"stride": [4, 8], "truth": False, "split": None})
    if group is not None:
        return group
    rows, count = settings.rows, settings.rows * len(settings.tasks) * settings.episodes_per_task
    group = zarr.create_group(folder, attributes={**made_by, "complete": False})
    picture = (*settings.size, 3)
    group.create_array(
        "frames", shape=(count, *picture), chunks=(rows, *picture), dtype="uint8", compressors=ZstdCodec(level=1)
    )
    for name, dtype in (("episode", "int32"), ("task", "int16"), ("camera", "int8")):
        group.create_array(name, shape=(count,), chunks=(rows,), dtype=dtype, fill_value=-1, compressors=None)
    for name, shape in answer_shapes(*settings.size).items() if settings.truth else ():
        array = {"shape": (count, *shape), "chunks": (rows, *shape), "dtype": "float32", "fill_value": np.nan}
        group.create_array(name, **array, compressors=ZstdCodec(level=1), attributes={"meaning": MEANINGS[name]})
    return group


def _fill(folder: Path, group: Any, settings: _Settings, *, workers: int) -> None:
    """Render the missing episodes, a task's in as few jobs as keep all workers busy, since each compiles its scene."""
    done = np.asarray(group["episode"][:: settings.rows]) >= 0
    missing = [np.flatnonzero(~row) for row in done.reshape(len(settings.tasks), settings.episodes_per_task)]
    parts = math.ceil(workers / max(1, sum(len(numbers) > 0 for numbers in missing)))
    jobs = [
        (folder, settings, task, part.tolist())
        for task, numbers in enumerate(missing)
        for part in np.array_split(numbers, parts)
        if len(part)
    ]
    with tqdm(total=done.size, initial=int(done.sum()), desc="render", unit="episode") as progress:
        for rendered in run_jobs(_render_task, jobs, workers=workers):
            progress.update(rendered)


def _render_task(job: tuple[Path, _Settings, int, list[int]]) -> int:
    folder, settings, task, missing = job
    group: Any = zarr.open_group(folder, mode="r+")
    env = _make(settings, settings.tasks[task])
    oracle = Oracle(env) if settings.truth else None
    for number in missing:
        episode = task * settings.episodes_per_task + number
        where = slice(episode * settings.rows, (episode + 1) * settings.rows)
        seed = seeds.FRAMES[settings.first_seed + episode]
        for name, rows in _render_episode(env, oracle, seed, settings).items():
            group[name][where] = rows
        group["task"][where] = task
        group["camera"][where] = np.tile(np.arange(len(settings.cameras)), settings.frames_per_episode)
        group["episode"][where] = episode  # last: it marks the episode as whole
    env.close()
    if oracle:
        oracle.close()
    return len(missing)


def _render_episode(
    env: ManipulationEnv, oracle: Oracle | None, seed: int, settings: _Settings
) -> dict[str, NDArray[Any]]:
    """Play one episode, first wandering, then with a noisy expert if there is one: each array [frames*cameras ...]."""
    random = np.random.default_rng([seed, 2])
    stride, wander = int(random.integers(settings.stride[0], settings.stride[1] + 1)), int(random.integers(_WANDER))
    noise, drift = random.uniform(*_NOISE), np.zeros(env.action_size)
    simulation, has_expert = env.simulation, find_suite(settings.suite).has_expert
    env.reset(seed=seed)
    looks: list[dict[str, NDArray[Any]]] = []
    for step in range(wander + (settings.frames_per_episode - 1) * stride + 1):
        # Smooth: white noise would keep the robot in place.
        drift = 0.9 * drift + random.normal(scale=0.4, size=env.action_size)
        if step < wander or not has_expert:
            action = simulation.rest + simulation.noise * drift
        else:
            action = simulation.expert_action() + noise * simulation.noise * drift
        if step >= wander and (step - wander) % stride == 0:
            pictures = np.stack(list(env.observe()["pixels"].values()))
            looks.append({"frames": pictures, **(oracle.answer() if oracle else {})})
        env.act(np.clip(action, simulation.action_low, simulation.action_high).astype(np.float32))
    return {name: np.concatenate([look[name] for look in looks]) for name in looks[0]}
