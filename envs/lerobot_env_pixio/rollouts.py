"""Rollouts of a policy on many scenes at once: the policy here, the physics in worker processes."""

import logging
import pickle
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from lerobot_env_pixio.environment import ManipulationEnv, Observation
from lerobot_env_pixio.fleet import Advance, Film, Fleet, Outcome, Request, Start
from lerobot_env_pixio.memory import refuse_too_many
from lerobot_env_pixio.provenance import package_versions
from lerobot_env_pixio.records import EpisodeRecord
from pixio_robot.errors import SettingError

logger = logging.getLogger(__name__)

Policy = Callable[[Observation], ArrayLike]
"""From {"pixels": {camera: uint8 [b h w 3]}, "agent_pos": float32 [b a], ...} to actions [b a] or chunks [b k a]."""


def rollout(
    policy: Policy,
    make: Callable[[], ManipulationEnv],
    *,
    seeds: Sequence[int],
    workers: int = 1,
    slots: int = 8,
    arm: str = "",
    policy_seed: int = 0,
    encoder: str | None = None,
    videos: int = 0,
    video_folder: str | Path | None = None,
    patience: float = 120.0,
) -> list[EpisodeRecord]:
    """Play one episode per seed and record each.

    Up to ``slots`` episodes run in step, and the policy sees them as one batch; a finished one makes room for the next
    seed. Chunks of actions are carried out with eyes shut. Which scenes share a batch does not depend on the number
    of workers, so neither does the result. An environment that raises, dies or hangs is recorded as an error.

    Workers are spawned. They import the script that calls this only if ``make`` is defined there; put it into a module,
    or keep what else the script does behind ``if __name__ == "__main__"``.

    Args:
        policy: Any callable from a batch of observations to actions or chunks of actions.
        make: Makes the environment; picklable, such as ``functools.partial(make_env, "metaworld", "reach-v3")``.
        seeds: The scenes.
        workers: Processes.
        slots: Episodes that run at once.
        arm: What is compared, for the records.
        policy_seed: What the policy was trained from, for the records.
        encoder: Hash of the policy's encoder, for the records.
        videos: How many of the first failures, and how many of the first successes, are filmed: all cameras side by
            side, every step, 30 of them per second. Their actions are taken again for that, so a film costs nothing
            until it is known to be wanted.
        video_folder: Where films go.
        patience: Seconds without an answer from any worker after which those awaited count as hung.

    Returns:
        One record per seed, in order of the seeds.

    Raises:
        SettingError: No seeds, one given twice, numbers below 1, more slots than memory, or a policy that gives
            something else than actions.
        RenderError: The machine cannot render. Any other error of ``make`` comes through as it is.
    """
    seeds = [int(seed) for seed in seeds]  # NumPy's integers are none to gymnasium, nor to JSON
    _check(make, seeds=seeds, workers=workers, slots=slots, videos=videos, video_folder=video_folder)
    slots = min(slots, len(seeds))
    workers = min(workers, slots)
    env = make()  # errors of settings fail here; nothing is rendered in this process
    settings = env.settings
    refuse_too_many(settings["suite"], slots=slots, workers=workers)
    with Fleet(make, workers=workers, patience=patience) as fleet:
        outcomes = _play(policy, fleet, seeds=seeds, slots=slots, axes=env.action_size)
        played = dict(tqdm(outcomes, total=len(seeds), desc=f"roll out {arm}".strip(), unit="episode"))
        wanted = _choose_films(played, seeds=seeds, count=videos)
        films = _film(fleet, wanted, slots=slots, folder=Path(video_folder or ""), name=arm or "episode")
    return [
        EpisodeRecord(
            suite=settings["suite"],
            task=settings["task"],
            env_seed=seed,
            policy_seed=policy_seed,
            arm=arm,
            encoder=encoder,
            settings=settings,
            versions=package_versions(settings["suite"]),
            success=played[seed].success,
            total_reward=played[seed].total_reward,
            steps=played[seed].steps,
            milestone=played[seed].milestone,
            error=played[seed].error,
            video=films.get(seed),
        )
        for seed in seeds
    ]


def _check(
    make: Callable[[], ManipulationEnv],
    *,
    seeds: Sequence[int],
    workers: int,
    slots: int,
    videos: int,
    video_folder: str | Path | None,
) -> None:
    if not len(seeds) or len(set(seeds)) < len(seeds):
        raise SettingError(f"{len(seeds)} seeds, {len(set(seeds))} different: give at least one, and none twice.")
    if workers < 1 or slots < 1:
        raise SettingError(f"workers={workers}, slots={slots}: both must be at least 1.")
    if videos < 0:
        raise SettingError(f"videos={videos}: must be at least 0.")
    if videos and video_folder is None:
        raise SettingError(f"videos={videos} without video_folder: say where they go.")
    try:
        pickle.dumps(make)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise SettingError(
            f"make={make!r} cannot be sent to a worker process. Use functools.partial(make_env, ...)."
        ) from error


def _play(
    policy: Policy, fleet: Fleet, *, seeds: Sequence[int], slots: int, axes: int
) -> Iterator[tuple[int, Outcome]]:
    """Yield each seed with its outcome as it ends."""
    waiting = deque(seeds)
    playing: dict[int, int] = {}  # slot to seed
    seen: dict[int, Observation] = {}  # slot to what the policy is yet to answer
    while waiting or playing:
        for slot in range(slots):
            if slot not in playing and waiting:
                playing[slot] = waiting.popleft()
        requests: list[Request] = [Start(slot=slot, seed=playing[slot]) for slot in playing.keys() - seen.keys()]
        requests += [Advance(slot=slot, actions=chunk) for slot, chunk in decide(policy, seen, axes=axes).items()]
        seen = {}
        for slot, answer in fleet.ask(sorted(requests, key=lambda request: request.slot)).items():
            if isinstance(answer, Outcome):
                yield playing.pop(slot), answer
            elif isinstance(answer, dict):
                seen[slot] = answer


def _choose_films(played: dict[int, Outcome], *, seeds: Sequence[int], count: int) -> dict[int, Outcome]:
    """Give the first failures and the first successes by seed; what broke off is neither."""
    chosen = [
        seed for success in (False, True) for seed in [one for one in seeds if played[one].success is success][:count]
    ]
    return {seed: played[seed] for seed in chosen}


def _film(fleet: Fleet, wanted: dict[int, Outcome], *, slots: int, folder: Path, name: str) -> dict[int, str]:
    """Film episodes, one per slot at a time; give the files by seed. One that cannot be filmed is left out."""
    films: dict[int, str] = {}
    waiting = deque(wanted.items())
    while waiting:
        round_ = [waiting.popleft() for _ in range(min(slots, len(waiting)))]
        requests = [
            Film(slot=slot, seed=seed, actions=outcome.actions, path=folder / f"{name}_{seed}_{_word(outcome)}.mp4")
            for slot, (seed, outcome) in enumerate(round_)
            if outcome.actions is not None
        ]
        answers = fleet.ask(requests)
        for request in requests:
            answer = answers.get(request.slot)
            if isinstance(answer, Path):
                films[request.seed] = str(answer)
            else:
                logger.warning("No film of seed %d: %s", request.seed, getattr(answer, "error", "its worker was lost"))
    return films


def _word(outcome: Outcome) -> str:
    return "success" if outcome.success else "failure"


def decide(policy: Policy, seen: dict[int, Observation], *, axes: int) -> dict[int, NDArray[np.float32]]:
    """Ask the policy once for all slots; give each one's chunk [k a].

    Raises:
        SettingError: The policy gave something else than actions of ``axes`` numbers.
    """
    if not seen:
        return {}
    ordered = [seen[slot] for slot in sorted(seen)]
    batch: dict[str, Any] = {key: np.stack([one[key] for one in ordered]) for key in ordered[0] if key != "pixels"}
    batch["pixels"] = {name: np.stack([one["pixels"][name] for one in ordered]) for name in ordered[0]["pixels"]}
    actions = np.asarray(policy(batch), np.float32)
    chunks = actions[:, None] if actions.ndim == 2 else actions  # b k a
    shaped = chunks.ndim == 3 and chunks.shape[::2] == (len(ordered), axes) and chunks.shape[1] > 0
    if not shaped or not np.isfinite(chunks).all():
        raise SettingError(
            f"The policy gave actions of shape {list(actions.shape)} for {len(ordered)} observations, or NaN. "
            f"Give finite ones of shape [{len(ordered)} {axes}] or, as chunks, [{len(ordered)} k {axes}]."
        )
    return dict(zip(sorted(seen), chunks, strict=True))
