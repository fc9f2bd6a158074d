#!/usr/bin/env python
"""Frames and episodes per second: LeRobot's own Meta-World environment and evaluation loop against ours.

Both show the same task through the same camera at the same size, and both take turns, so that whatever else the machine
does hits both. LeRobot's environment always renders 480 x 480 pixels with shadows and reflections, at every step; ours
renders with the preset that is asked for, and only when the policy is about to look. Whole rollouts are those of one
small ACT with random weights, which carries out chunks of 8 actions: speed does not hang on what it has learnt.
"""

import argparse
import os
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
from circumstances import circumstances, write_figures
from rich.console import Console
from rich.table import Table
from turns import ratio, take_turns

from lerobot_env_pixio import make_env, rollout, seeds
from lerobot_env_pixio.provenance import package_versions

CAMERA, SIZE = "corner2", 480  # LeRobot's, which cannot be chosen there
PRESETS = ("fast", "full")
CONSOLE = Console()


def main() -> None:
    """Take turns, print the tables and write the figures."""
    options = parse_options()
    import torch
    from lerobot.envs.metaworld import MetaworldEnv

    torch.set_num_threads(options.threads)

    stock = MetaworldEnv(f"metaworld-{options.task}", camera_name=CAMERA, obs_type="pixels_agent_pos")
    ours = {
        preset: make_env("metaworld", options.task, cameras=[CAMERA], size=SIZE, render=preset) for preset in PRESETS
    }
    looks = {"LeRobot": stock, **{f"ours, {preset}": env for preset, env in ours.items()}}
    steps = {name: partial(frames_per_second, env, options.steps) for name, env in looks.items()}
    frames = take_turns(steps, options.rounds)
    show("frames per second, one process", frames)

    plays = {
        "LeRobot": partial(lerobot_episodes_per_minute, stock, options),
        "ours, fast": partial(our_episodes_per_minute, options),
    }
    episodes = take_turns(plays, options.rounds)
    show(f"episodes of {options.limit} steps per minute, one process", episodes)
    figures = {
        **circumstances(threads=options.threads),
        "versions": package_versions("metaworld"),
        "frames_per_second": frames,
        "episodes_per_minute": episodes,
    }
    write_figures(options.folder / "benchmark_simulation.json", figures)


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--task", default="pick-place-v3", help="of Meta-World")
    parser.add_argument("--steps", type=int, default=20, help="frames per turn")
    parser.add_argument("--episodes", type=int, default=4, help="episodes per turn, all at once")
    parser.add_argument("--limit", type=int, default=100, help="steps of an episode")
    parser.add_argument("--rounds", type=int, default=3, help="turns, after one to warm up")
    parser.add_argument("--threads", type=int, default=1, help="threads of the policy")
    parser.add_argument("--folder", type=Path, default=Path("outputs"), help="for the figures")
    return parser.parse_args()


def frames_per_second(env: Any, steps: int) -> float:
    """Step with small random actions and look after each."""
    env.reset(seed=0)
    actions = np.random.default_rng(0).uniform(-0.3, 0.3, (steps, 4)).astype(np.float32)
    began = time.perf_counter()
    for action in actions:
        env.step(action)
    return steps / (time.perf_counter() - began)


def lerobot_episodes_per_minute(env: Any, options: argparse.Namespace) -> float:
    """LeRobot's own evaluation loop."""
    import torch
    from gymnasium.vector import SyncVectorEnv
    from lerobot.envs.configs import MetaworldEnv as MetaworldConfig
    from lerobot.envs.factory import make_env_pre_post_processors
    from lerobot.scripts.lerobot_eval import rollout as lerobots

    policy, *processors = make_policy("observation.image")
    vector = SyncVectorEnv(
        [lambda: env] + [lambda: type(env)(env.task, obs_type=env.obs_type)] * (options.episodes - 1)
    )
    subs: list[Any] = [one.unwrapped for one in vector.envs]
    for sub in subs:
        sub._max_episode_steps = options.limit  # there is no setting for it
    around = make_env_pre_post_processors(MetaworldConfig(), policy.config)
    scenes: Any = seeds.draw(seeds.DEMONSTRATION, options.episodes)
    vector.reset(seed=scenes)  # compiles the scenes
    began = time.perf_counter()
    with torch.inference_mode():
        lerobots(vector, policy, *around, *processors, seeds=scenes)
    return 60 * options.episodes / (time.perf_counter() - began)


def our_episodes_per_minute(options: argparse.Namespace) -> float:
    """Our rollouts; starting the simulator's process is part of them."""
    from lerobot_policy_pixio.acting import Actor

    actor = Actor(*make_policy(f"observation.images.{CAMERA}"))
    make = partial(make_env, "metaworld", options.task, cameras=[CAMERA], size=SIZE, max_episode_steps=options.limit)
    scenes = seeds.draw(seeds.DEMONSTRATION, options.episodes)
    began = time.perf_counter()
    rollout(actor, make, seeds=scenes, slots=options.episodes)
    return 60 * options.episodes / (time.perf_counter() - began)


def make_policy(camera: str) -> tuple[Any, Any, Any]:
    """A small ACT with random weights and its processors."""
    import torch
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors
    from small_policies import small_act

    config = small_act("shipped:pixio_vitt16", grid=4)
    config.input_features = {
        "observation.state": PolicyFeature(type=FeatureType.STATE, shape=(4,)),
        camera: PolicyFeature(type=FeatureType.VISUAL, shape=(3, SIZE, SIZE)),
    }
    config.output_features = {"action": PolicyFeature(type=FeatureType.ACTION, shape=(4,))}
    torch.manual_seed(0)
    policy = get_policy_class(config.type)(config).eval()
    return policy, *make_pre_post_processors(config)


def show(title: str, figures: dict[str, list[float]]) -> None:
    """Print figures and ratios to LeRobot's."""
    table = Table(title=title, title_justify="left")
    for column in ("", "median", "range", "ratio to LeRobot (range of the rounds)"):
        table.add_column(column)
    for name, values in figures.items():
        span = f"{min(values):.3g} to {max(values):.3g}"
        table.add_row(name, f"{statistics.median(values):.3g}", span, ratio(values, figures["LeRobot"]))
    CONSOLE.print(table)


if __name__ == "__main__":
    main()
