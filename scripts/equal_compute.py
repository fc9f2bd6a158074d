#!/usr/bin/env python
r"""Say how to train several runs with the same compute, once per seed.

Compute is the floating-point operations of training, forward and backward, that `torch.utils.flop_counter` counts for
one sample, times samples: matrix products, convolutions and attention; not the optimiser, and not what reading images
costs. The first run sets the budget, and each other one takes the steps that spend it:

    scripts/equal_compute.py vitt16_metaworld mae_vitt16_metaworld --data outputs/frames --steps 5000 --seeds 3
"""

import argparse
import shlex
from dataclasses import dataclass
from pathlib import Path

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from pixio_pretrain import RunConfig, cli
from pixio_pretrain.costs import count_costs
from pixio_robot.errors import PixioRobotError


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One run: its name, FLOPs per sample and samples per step."""

    run: str
    flops: float
    batch_size: int
    steps: int


def count(run: str) -> Arm:
    """Count what a run of ``conf/run`` does."""
    with initialize_config_module(f"{cli.__package__}.conf", version_base="1.3"):
        config = OmegaConf.to_object(compose("config", [f"run={run}", "data=PATH"]))
    assert isinstance(config, RunConfig)  # the schema sees to it
    flops = count_costs(config.objective, precision=config.precision).step_flops
    return Arm(run=run, flops=flops, batch_size=config.batch_size, steps=config.steps)


def main() -> None:
    """Read the command line, count, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="names of runs; the first one sets the budget")
    parser.add_argument("--data", default="outputs/frames", help="frames to train on (default: outputs/frames)")
    parser.add_argument(
        "--folder", type=Path, default=Path("outputs/arms"), help="where runs go (default: outputs/arms)"
    )
    parser.add_argument("--steps", type=int, help="steps of the first run; its own when left out")
    parser.add_argument("--seeds", type=int, default=3, help="encoders per run (default: 3)")
    options = parser.parse_args()
    try:
        arms = [count(run) for run in options.runs]
    except PixioRobotError as error:
        raise SystemExit(f"equal_compute: {error}") from error
    budget = arms[0].flops * arms[0].batch_size * (options.steps or arms[0].steps)
    seeds = range(options.seeds)
    named = []
    for arm in arms:
        steps = round(budget / (arm.flops * arm.batch_size))
        spent = arm.flops * arm.batch_size * steps / 1e15
        print(f"# {arm.run}: {arm.flops / 1e9:.3f} GFLOP a sample x {arm.batch_size} x {steps} = {spent:.4f} PFLOP")
        words = ["pixio-pretrain", "-m", f"run={arm.run}", f"data={options.data}", f"steps={steps}"]
        words += [f"seed={','.join(map(str, seeds))}", f"folder={options.folder}/{arm.run}-${{seed}}"]
        print(shlex.join(words))
        named.append(f"{arm.run}=" + ",".join(f"{options.folder}/{arm.run}-{seed}" for seed in seeds))
    print("# then\n" + shlex.join(["scripts/compare_encoders.py", "outputs/probe", *named]))


if __name__ == "__main__":
    main()
