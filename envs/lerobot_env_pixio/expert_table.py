"""How often the scripted experts succeed, and how long they take: ``python -m lerobot_env_pixio.expert_table``."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from lerobot_env_pixio import seeds
from lerobot_env_pixio.environment import make_env
from lerobot_env_pixio.processes import run_jobs
from lerobot_env_pixio.statistics import wilson
from lerobot_env_pixio.suites import SUITES, refuse_without_expert
from lerobot_env_pixio.tasks import find_tasks


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One episode of an expert: the step of its first success within the time limit, or None."""

    task: str
    seed: int
    solved_at: int | None


def measure_experts(
    suite: str, tasks: str | Sequence[str] = "all", *, episodes: int = 20, noise: float = 0.0, workers: int = 2
) -> dict[str, list[Trial]]:
    """Let a suite's experts play, without any picture, on demonstration seeds.

    Args:
        suite: A key of ``SUITES``.
        tasks: Names of tasks or of sets of them.
        episodes: Scenes of each task.
        noise: Standard deviation of the noise on executed actions, see ``demonstrate``.
        workers: Processes.

    Returns:
        Task name to its trials, in order of their seeds.

    Raises:
        UnknownNameError: No such suite, task or set.
        SettingError: The suite has no experts, or it is not installed.
    """
    refuse_without_expert(suite)
    names = [task.name for task in find_tasks(suite, tasks)]
    scenes = seeds.draw(seeds.DEMONSTRATION, episodes)
    jobs = [(suite, name, scenes, noise) for name in names]
    trials: dict[str, list[Trial]] = {}
    for played in tqdm(run_jobs(_play_task, jobs, workers=workers), total=len(jobs), desc=suite, unit="task"):
        trials[played[0].task] = played
    return {name: trials[name] for name in names}


def _play_task(job: tuple[str, str, list[int], float]) -> list[Trial]:
    suite, task, scenes, noise = job
    env = make_env(suite, task, size=8)
    simulation, trials = env.simulation, []
    for seed in scenes:
        random = np.random.default_rng([seed, 3])
        simulation.reset(seed)
        solved_at = None
        for step in range(1, env.max_episode_steps + 1):
            action = simulation.expert_action() + noise * simulation.noise * random.normal(size=env.action_size)
            action = np.clip(action, simulation.action_low, simulation.action_high)
            if simulation.step(action.astype(np.float32))[1]:
                solved_at = step
                break
        trials.append(Trial(task=task, seed=seed, solved_at=solved_at))
    env.close()
    return trials


def write_table(trials: dict[str, list[Trial]]) -> str:
    """Give a Markdown table: successes with their 95 % Wilson interval, and steps to the first success."""
    lines = ["| task | success | 95 % interval | steps, mean (fewest to most) |", "| --- | --- | --- | --- |"]
    for task, played in trials.items():
        solved = [trial.solved_at for trial in played if trial.solved_at is not None]
        low, high = wilson(len(solved), len(played))
        steps = f"{np.mean(solved):.0f} ({min(solved)} to {max(solved)})" if solved else ""
        lines.append(f"| {task} | {len(solved)}/{len(played)} | {low:.0%} to {high:.0%} | {steps} |")
    solved = sum(trial.solved_at is not None for played in trials.values() for trial in played)
    return "\n".join([*lines, f"| all | {solved}/{sum(map(len, trials.values()))} | | |"])


def main() -> None:
    """Read the command line, play, print the table."""
    able = [name for name, suite in SUITES.items() if suite.has_expert]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--suite", default="metaworld", help=f"a suite with experts: {', '.join(able)}")
    parser.add_argument("--tasks", nargs="+", default=["all"], help="tasks or sets of tasks")
    parser.add_argument("--episodes", type=int, default=20, help="scenes of each task")
    parser.add_argument("--noise", type=float, default=0.0, help="noise on the executed actions")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    args = parser.parse_args()
    trials = measure_experts(args.suite, args.tasks, episodes=args.episodes, noise=args.noise, workers=args.workers)
    print(write_table(trials))  # noqa: T201


if __name__ == "__main__":
    main()
