"""How often a policy succeeds in an environment, while it trains and on the same scenes every time."""

import math
from dataclasses import dataclass

import torch
from lerobot.envs import EnvConfig, close_envs, make_env, make_env_pre_post_processors
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.processor import PolicyProcessorPipeline
from lerobot.scripts.lerobot_eval import eval_policy_all

from pixio_robot.errors import SettingError

Z = 1.959964  # two-sided 95 % of a normal distribution


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """How to measure a policy in an environment."""

    n_episodes: int = 50
    """Episodes per task of the environment."""
    batch_size: int = 1
    """Environments at once."""
    use_async_envs: bool = False
    """Give each of them a process of its own."""
    first_seed: int = 3_000_000
    """Episode i is reset with seed ``first_seed`` + i, in every evaluation of every run. What is chosen by an
    evaluation should be measured on other scenes: the default is where those for development begin, and the benchmark
    measures on those from 1 000 000 on."""


@dataclass(frozen=True, kw_only=True)
class Evaluation(EvalOptions):
    """Rollouts at intervals, through LeRobot's environments and its ``eval_policy_all``.

    Attributes:
        env: The environment, as ``--env.type`` makes it.
        every: Training steps between two evaluations.
    """

    env: EnvConfig
    every: int

    def __post_init__(self) -> None:
        for name in ("every", "n_episodes", "batch_size"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name} of an evaluation must be at least 1, not {getattr(self, name)}.")

    def run(
        self, policy: PreTrainedPolicy, processors: tuple[PolicyProcessorPipeline, PolicyProcessorPipeline]
    ) -> dict[str, float]:
        """Roll a policy out; whatever chance the policy itself takes is seeded, too.

        Args:
            policy: The policy; it comes back in the mode, training or evaluation, that it was in.
            processors: Its pre- and postprocessor.

        Returns:
            "eval_success" in [0, 1] over all episodes with the ends of its 95 % Wilson interval "eval_success_low" and
            "eval_success_high", "eval_episodes", their mean "eval_reward" and the seconds "eval_s"; with several tasks
            also "eval_success/<suite>/<task>".
        """
        device = torch.device(str(policy.config.device))
        before, after = make_env_pre_post_processors(self.env, policy.config)
        cuda = [torch.cuda.current_device()] if device.type == "cuda" else []
        envs = make_env(self.env, n_envs=self.batch_size, use_async_envs=self.use_async_envs)
        try:
            mixed = torch.autocast(device.type, torch.bfloat16, enabled=policy.config.use_amp)
            with torch.random.fork_rng(cuda), torch.no_grad(), mixed:
                torch.manual_seed(self.first_seed)
                found = eval_policy_all(
                    envs,
                    policy,
                    before,
                    after,
                    *processors,
                    n_episodes=self.n_episodes,
                    start_seed=self.first_seed,
                    max_parallel_tasks=self.env.max_parallel_tasks,
                )
        finally:
            close_envs(envs)
            policy.reset()
        successes = {
            f"{task['task_group']}/{task['task_id']}": [bool(success) for success in task["metrics"]["successes"]]
            for task in found["per_task"]
        }
        everyone = [success for task in successes.values() for success in task]
        low, high = wilson(sum(everyone), len(everyone))
        told = {
            "eval_success": sum(everyone) / len(everyone),
            "eval_success_low": low,
            "eval_success_high": high,
            "eval_episodes": len(everyone),
            "eval_reward": found["overall"]["avg_sum_reward"],
            "eval_s": found["overall"]["eval_s"],
        }
        if len(successes) > 1:
            told |= {f"eval_success/{name}": sum(task) / len(task) for name, task in successes.items()}
        return told


def wilson(k: int, n: int) -> tuple[float, float]:
    """Give the 95 % Wilson score interval of a rate of k successes in n episodes (no continuity correction)."""
    middle = (k + Z**2 / 2) / (n + Z**2)
    half = Z / (n + Z**2) * math.sqrt(k * (n - k) / n + Z**2 / 4)
    return max(0.0, middle - half), min(1.0, middle + half)
