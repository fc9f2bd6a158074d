#!/usr/bin/env python
r"""Say how to train several runs with the same compute, once per seed.

Compute is the floating-point operations of training, forward and backward, that `torch.utils.flop_counter` counts for
one sample, times samples: matrix products, convolutions and attention; not the optimiser, and not what reading images
costs. The first run sets the budget, and each other one takes the steps that spend it:

    scripts/equal_compute.py vitt16_metaworld mae_vitt16_metaworld --data outputs/frames --steps 5000 --seeds 3

A run with other settings has a name of its own:

    scripts/equal_compute.py vitt16_metaworld \
        small=vitt16_metaworld,objective.patch_size=8 conv=vitt16_metaworld,objective.stem=conv
"""

import argparse
import shlex
from dataclasses import dataclass
from pathlib import Path

from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from omegaconf import OmegaConf

from pixio_pretrain import RunConfig, cli
from pixio_pretrain.costs import count_costs
from pixio_robot.errors import PixioRobotError


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One run: its name, the words that choose it, FLOPs per sample, samples per step and its own steps."""

    name: str
    words: list[str]
    flops: float
    batch_size: int
    steps: int


def count(arm: str) -> Arm:
    """Count what RUN, a name in ``conf/run``, or NAME=RUN,KEY=VALUE,... does."""
    run, *overrides = arm.split(",")
    name, _, run = run.rpartition("=")
    words = [f"run={run}", *overrides]
    with initialize_config_module(f"{cli.__package__}.conf", version_base="1.3"):
        config = OmegaConf.to_object(compose("config", [*words, "data=PATH"]))
    assert isinstance(config, RunConfig)  # the schema sees to it
    flops = count_costs(config.objective, precision=config.precision).step_flops
    return Arm(name=name or run, words=words, flops=flops, batch_size=config.batch_size, steps=config.steps)


def main() -> None:
    """Read the command line, count, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN | NAME=RUN,KEY=VALUE,...", help="the first one sets the budget")
    parser.add_argument("--data", default="outputs/frames", help="frames to train on (default: outputs/frames)")
    parser.add_argument(
        "--folder", type=Path, default=Path("outputs/arms"), help="where runs go (default: outputs/arms)"
    )
    parser.add_argument("--steps", type=int, help="steps of the first run; its own when left out")
    parser.add_argument("--seeds", type=int, default=3, help="encoders per run (default: 3)")
    options = parser.parse_args()
    try:
        arms = [count(run) for run in options.runs]
    except (HydraException, PixioRobotError) as error:
        raise SystemExit(f"equal_compute: {error}") from error
    budget = arms[0].flops * arms[0].batch_size * (options.steps or arms[0].steps)
    seeds = range(options.seeds)
    named = []
    for arm in arms:
        steps = round(budget / (arm.flops * arm.batch_size))
        spent = arm.flops * arm.batch_size * steps / 1e15
        print(f"# {arm.name}: {arm.flops / 1e9:.3f} GFLOP a sample x {arm.batch_size} x {steps} = {spent:.4f} PFLOP")
        words = ["pixio-pretrain", "-m", *arm.words, f"data={options.data}", f"steps={steps}"]
        words += [f"seed={','.join(map(str, seeds))}", f"folder={options.folder}/{arm.name}-${{seed}}"]
        print(shlex.join(words))
        named.append(f"{arm.name}=" + ",".join(f"{options.folder}/{arm.name}-{seed}" for seed in seeds))
    print("# then\n" + shlex.join(["scripts/compare_encoders.py", "outputs/probe", *named]))


if __name__ == "__main__":
    main()
