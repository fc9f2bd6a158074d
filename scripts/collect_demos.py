#!/usr/bin/env python
"""Collect demonstrations of a scripted expert into a LeRobotDataset, for lerobot-train and everything else."""

import argparse
from pathlib import Path

from pixio_robot.errors import told_on_one_line


@told_on_one_line("collect_demos")
def main() -> None:
    """Read the command line and collect."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("task", nargs="?", default="button-press-topdown-v3", help="a task of the suite")
    parser.add_argument("--folder", type=Path, help="where the data set goes; outputs/demos/TASK if left out")
    parser.add_argument("--suite", default="metaworld", help="the simulator")
    parser.add_argument("--episodes", type=int, default=25, help="successful episodes")
    parser.add_argument("--cameras", nargs="+", help="cameras; the task's own if left out")
    parser.add_argument("--size", type=int, default=128, help="pixels of a side")
    parser.add_argument("--render", default="fast", help="fast or full")
    parser.add_argument("--shift", default="none", help="change of looks between episodes: none, mild, strong, ...")
    parser.add_argument("--split", choices=["train", "test"], help="half of the looks to draw from; all if left out")
    parser.add_argument("--noise", type=float, default=0.1, help="noise on the executed actions, out of 1")
    parser.add_argument("--first-seed", type=int, default=0, help="where in the demonstration seeds to begin")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    args = parser.parse_args()

    from lerobot_env_pixio.demos import collect_demonstrations  # after --help

    settings = vars(args)
    settings["shift"] = None if args.shift == "none" else args.shift
    folder = settings.pop("folder") or Path("outputs/demos") / args.task
    print(collect_demonstrations(folder, settings.pop("suite"), settings.pop("task"), **settings))


if __name__ == "__main__":
    main()
