"""Expert demonstrations as a LeRobotDataset v3, collected resumably.

Worker processes play episodes and leave each in a staging folder; one pass then writes them in order of their seeds.
So a run that was killed and taken up again gives the same data as an unbroken one. LeRobot is imported by that pass
alone: it takes several seconds, which workers should not spend.
"""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from tqdm import tqdm

from lerobot_env_pixio import seeds
from lerobot_env_pixio.environment import ManipulationEnv, Size, make_env
from lerobot_env_pixio.processes import run_jobs
from lerobot_env_pixio.provenance import package_versions, refuse_other_settings
from lerobot_env_pixio.suites import refuse_without_expert
from pixio_robot.drafts import draft_of
from pixio_robot.errors import DataError, SettingError

logger = logging.getLogger(__name__)

_GENERATION = "generation.json"

# Lossless but for the conversion of colours. Half-resolution chroma (yuv420p, LeRobot's default) gives 31 dB and
# errors of up to 255 on these pictures, and in a rollout the policy sees them unspoilt. About 10 kB each at 128 px.
_VIDEO = {"vcodec": "h264", "pix_fmt": "yuv444p", "crf": 0, "preset": "ultrafast"}

_AFTERMATH = 8  # steps that are kept after the first success, so that the last chunk of actions has a target


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """One successful episode of t steps.

    Attributes:
        pixels: What each camera saw before each action, uint8 [t h w 3].
        states: What the robot knew of itself, float32 [t s].
        actions: What the expert wanted, float32 [t a]; what was done differs from it by the noise.
        rewards: Reward of each action, float32 [t].
        successes: Whether the task stood solved after each action, bool [t].
        environment_states: The scene's whole state before each action, float32 [t s]; None where it is not observed.
    """

    pixels: dict[str, NDArray[np.uint8]]
    states: NDArray[np.float32]
    actions: NDArray[np.float32]
    rewards: NDArray[np.float32]
    successes: NDArray[np.bool_]
    environment_states: NDArray[np.float32] | None = None


def demonstrate(env: ManipulationEnv, seed: int, *, noise: float) -> Demonstration | None:
    """Let the expert play one episode and stop shortly after the first success.

    Noise is added to the actions that are executed while the expert's own are recorded, so that the demonstrations
    cover the surroundings of the expert's path (DART, https://arxiv.org/abs/1703.09327).

    Args:
        env: The environment.
        seed: The scene; it also fixes the noise.
        noise: Standard deviation of the noise, in units of the simulation's own ``noise``: for most suites actions run
            from -1 to 1, and that unit is 1.

    Returns:
        The episode, or None if the expert failed within the time limit.

    Raises:
        SettingError: The suite has no expert.
    """
    random = np.random.default_rng([seed, 3])
    simulation = env.simulation
    observation, _ = env.reset(seed=seed)
    steps, remaining = [], env.max_episode_steps
    while remaining > 0:
        wanted = simulation.expert_action()
        disturbed = wanted + noise * simulation.noise * random.normal(size=wanted.shape)
        done = np.clip(disturbed, simulation.action_low, simulation.action_high).astype(np.float32)
        reward, success = env.act(done)
        steps.append((observation, wanted, reward, success))
        remaining = min(remaining - 1, _AFTERMATH) if success else remaining - 1
        observation = env.observe()
    observations, actions, rewards, successes = zip(*steps, strict=True)
    if not any(successes):
        return None
    has_state = "environment_state" in observation
    return Demonstration(
        pixels={name: np.stack([seen["pixels"][name] for seen in observations]) for name in env.cameras.names},
        states=np.stack([seen["agent_pos"] for seen in observations]),
        actions=np.stack(actions),
        rewards=np.array(rewards, np.float32),
        successes=np.array(successes),
        environment_states=np.stack([seen["environment_state"] for seen in observations]) if has_state else None,
    )


def collect_demonstrations(
    folder: str | Path,
    suite: str,
    task: str,
    *,
    episodes: int,
    cameras: Sequence[str] | None = None,
    size: Size | Mapping[str, Size] = 128,
    render: str = "fast",
    shift: str | None = None,
    split: str | None = None,
    state: bool = False,
    noise: float = 0.1,
    first_seed: int = 0,
    workers: int = 2,
) -> Path:
    """Collect successful episodes of a task's scripted expert into a LeRobotDataset.

    Its features are ``observation.images.<camera>`` (video), ``observation.state``, ``action`` (what the expert
    wanted), ``next.reward``, ``next.success`` and ``seed``; with ``state`` also ``observation.environment_state``.
    Seeds at which the expert fails are passed over. A killed run is taken up where it stopped; a complete data set of
    the same settings is reused. Of several processes that ask for one folder, one collects, and the others wait for it.

    Args:
        folder: Where the data set goes; staging happens in siblings of it.
        suite: A key of ``TASKS``.
        task: A task of that suite.
        episodes: How many successful ones.
        cameras: Names of the cameras; None for the task's own.
        size: Pixels: one number for a square, or (height, width); or either for each camera by name.
        render: A key of ``RENDER_PRESETS``.
        shift: A key of ``SHIFTS``, or None.
        split: "train", "test" or None: the looks that a shift draws from.
        state: Record the scene's whole state too, as ``make_env`` gives it.
        noise: Standard deviation of the noise on executed actions, see ``demonstrate``.
        first_seed: Position in the range of demonstration seeds.
        workers: Processes.

    Returns:
        The folder; open it with ``LeRobotDataset(repo_id, root=folder)``.

    Raises:
        UnknownNameError: An unknown suite, task, camera, preset, shift or split.
        SettingError: Numbers that cannot be, or a suite without an expert.
        DataError: The folder holds something else, or the expert hardly ever succeeds.
    """
    folder = Path(folder)
    if episodes < 1 or workers < 1 or noise < 0:
        raise SettingError(f"episodes={episodes}, workers={workers}, noise={noise}: at least 1, 1 and 0 are needed.")
    refuse_without_expert(suite)
    looks: dict[str, Any] = {"cameras": cameras, "size": size, "render": render, "shift": shift, "split": split}
    env = make_env(suite, task, **looks, state=state)  # bad names fail here
    made_by = {"environment": env.settings, "episodes": episodes, "noise": noise, "first_seed": first_seed}
    made_by |= {"video": _VIDEO, "versions": package_versions(suite)}
    staging = folder.with_name(f"{folder.name}.staging")
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if not folder.exists():  # another process may have been quicker
                _open_staging(staging, made_by)
                good = _play(staging, episodes=episodes, first_seed=first_seed, workers=workers)
                _write(folder, staging, good, env=env, made_by=made_by)
                shutil.rmtree(staging, ignore_errors=True)
                return folder
    refuse_other_settings(folder, found=_read_generation(folder), wanted=made_by)
    logger.info("%s is complete and of the same settings; reused", folder)
    shutil.rmtree(staging, ignore_errors=True)
    return folder


def _read_generation(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / _GENERATION).read_text())
    except FileNotFoundError as error:
        raise DataError(f"{folder} exists and holds no demonstrations of ours. Choose another folder.") from error


def _open_staging(staging: Path, made_by: dict[str, Any]) -> None:
    """Create the folder where episodes wait, or take up one that was left by the same settings."""
    if staging.exists():
        refuse_other_settings(staging, found=_read_generation(staging), wanted=made_by)
        return
    fresh = staging.with_name(f"{staging.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    (fresh / _GENERATION).write_text(json.dumps(made_by, indent=2))
    fresh.rename(staging)


def _play(staging: Path, *, episodes: int, first_seed: int, workers: int) -> list[int]:
    """Play seed after seed until enough of them have succeeded; give those, in order."""
    good: list[int] = []
    tried = 0
    with tqdm(total=episodes, desc="demonstrate", unit="episode") as progress:
        while len(good) < episodes:
            if tried > 10 * max(len(good), 5):
                raise DataError(f"The expert succeeded at {len(good)} of {tried} seeds only. Lower the noise.")
            batch = seeds.draw(seeds.DEMONSTRATION, episodes - len(good), first=first_seed + tried)
            tried += len(batch)
            jobs = [(staging, seed) for seed in batch if not _episode(staging, seed).exists()]
            progress.update(sum(_succeeded(staging, seed) for seed in batch))
            for succeeded in run_jobs(_play_seed, jobs, workers=workers):
                progress.update(succeeded)
            good += [seed for seed in batch if _succeeded(staging, seed)]
    return good


def _episode(staging: Path, seed: int) -> Path:
    """The file of one seed: it exists once it is whole, and is empty if the expert failed."""
    return staging / f"{seed:07d}.npz"


def _succeeded(staging: Path, seed: int) -> bool:
    path = _episode(staging, seed)
    return path.exists() and path.stat().st_size > 0


@lru_cache(maxsize=1)
def _environment(staging: Path) -> tuple[ManipulationEnv, float]:
    """The environment and the noise of a staging folder; one per process."""
    made_by = _read_generation(staging)
    return make_env(**made_by["environment"]), made_by["noise"]


def _play_seed(job: tuple[Path, int]) -> bool:
    staging, seed = job
    env, noise = _environment(staging)
    shown = demonstrate(env, seed, noise=noise)
    with draft_of(_episode(staging, seed)) as draft, draft.open("wb") as file:
        if shown:
            arrays: dict[str, Any] = {**vars(shown), **shown.pixels}
            del arrays["pixels"]
            np.savez(file, **{name: array for name, array in arrays.items() if array is not None})
    return shown is not None


def _write(folder: Path, staging: Path, good: list[int], *, env: ManipulationEnv, made_by: dict[str, Any]) -> None:
    """Write the episodes into a LeRobotDataset beside its place, and put it there once it is whole."""
    import av.logging
    import datasets
    from lerobot.configs.video import RGBEncoderConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    av.logging.set_libav_level(av.logging.ERROR)  # x264 would report on every episode,
    datasets.disable_progress_bars()  # and so would the table of frames
    begun = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(begun, ignore_errors=True)
    dataset = LeRobotDataset.create(
        repo_id=f"local/{folder.name}",
        fps=env.metadata["render_fps"],
        features=_features(env),
        root=begun,
        rgb_encoder=RGBEncoderConfig(**_VIDEO),
        video_backend="pyav",  # LeRobot would try another decoder first, and complain at length
        streaming_encoding=True,
        encoder_queue_maxsize=env.max_episode_steps,
        encoder_threads=1,  # the same bytes on every machine
    )
    for seed in tqdm(good, desc="write", unit="episode"):
        for frame in _frames(_episode(staging, seed), seed=seed, cameras=env.cameras.names):
            dataset.add_frame({**frame, "task": env.task_description})
        dataset.save_episode()
    dataset.finalize()
    (begun / _GENERATION).write_text(json.dumps(made_by, indent=2))
    datasets.enable_progress_bars()
    begun.rename(folder)


def _features(env: ManipulationEnv) -> dict[str, dict[str, Any]]:
    axes = list(env.simulation.axes)
    image = {"dtype": "video", "names": ["height", "width", "channels"]}
    images = {f"observation.images.{name}": image | {"shape": (*size, 3)} for name, size in env.cameras.sizes.items()}
    if env.settings.get("state"):
        state = {"dtype": "float32", "shape": env.simulation.state().shape, "names": None}
        images["observation.environment_state"] = state
    return images | {
        "observation.state": {"dtype": "float32", "shape": (len(axes),), "names": axes},
        "action": {"dtype": "float32", "shape": (len(axes),), "names": axes},
        "next.reward": {"dtype": "float32", "shape": (1,), "names": None},
        "next.success": {"dtype": "bool", "shape": (1,), "names": None},
        "seed": {"dtype": "int64", "shape": (1,), "names": None},
    }


def _frames(path: Path, *, seed: int, cameras: Sequence[str]) -> Iterator[dict[str, Any]]:
    with np.load(path) as stored:
        episode = dict(stored)
    for step in range(len(episode["actions"])):
        seen = {f"observation.images.{name}": episode[name][step] for name in cameras}
        if "environment_states" in episode:
            seen["observation.environment_state"] = episode["environment_states"][step]
        yield seen | {
            "observation.state": episode["states"][step],
            "action": episode["actions"][step],
            "next.reward": episode["rewards"][step : step + 1],
            "next.success": episode["successes"][step : step + 1],
            "seed": np.array([seed]),
        }
