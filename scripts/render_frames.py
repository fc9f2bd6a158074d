#!/usr/bin/env python
r"""Render pictures for pre-training: 30 000 of Meta-World of 128 px by default, a few minutes on two cores.

With --truth the exact answers stand beside them: where hand, object and goal are, how far everything is, the
calibration. That makes a set to probe encoders with, which wants many scenes and few pictures of each:

    scripts/render_frames.py outputs/probe --truth --tasks pick-place door-open --shift none --first-seed 100000 \
        --episodes-per-task 2000 --frames-per-episode 2 --stride 20 50

With --looks 3 every moment is seen three times, as it is and in two other lights and colours: a set to learn
descriptors from.

    scripts/render_frames.py outputs/looks --looks 3 --shift looks --episodes-per-task 30 --frames-per-episode 6 \
        --stride 6 14 --cameras corner2 corner3 gripperPOV
"""

import argparse
from pathlib import Path

from pixio_robot.errors import told_on_one_line


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the description, and tells defaults."""


@told_on_one_line("render_frames")
def main() -> None:
    """Read the command line and render."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Help)
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path("outputs/frames"), help="where the zarr group goes"
    )
    parser.add_argument("--suite", default="metaworld", help="adroit, aloha, dmcontrol or metaworld")
    parser.add_argument("--tasks", nargs="+", help="tasks of the suite; all if left out")
    parser.add_argument("--episodes-per-task", type=int, default=20, help="scenes of each task")
    parser.add_argument("--frames-per-episode", type=int, default=15, help="points in time of each scene")
    parser.add_argument("--cameras", nargs="+", help="cameras that look each time; the tasks' own if left out")
    parser.add_argument("--size", type=int, default=128, help="pixels of a side")
    parser.add_argument("--render", default="fast", help="fast or full")
    parser.add_argument("--shift", default="strong", help="change of looks between scenes: none, mild, strong, ...")
    parser.add_argument("--split", choices=["train", "test"], help="half of the looks to draw from; all if left out")
    parser.add_argument("--first-seed", type=int, default=0, help="set beyond another run's scenes for a held-out set")
    parser.add_argument(
        "--stride", type=int, nargs=2, default=[4, 8], metavar=("FEWEST", "MOST"), help="steps between pictures"
    )
    parser.add_argument("--truth", action="store_true", help="store positions, depth and calibration, too")
    parser.add_argument("--looks", type=int, default=1, help="pictures of each moment, but the first in other looks")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    args = parser.parse_args()

    from lerobot_env_pixio.frames import render_frames  # after --help

    settings = vars(args)
    settings["shift"] = None if args.shift == "none" else args.shift
    print(render_frames(settings.pop("folder"), **settings))


if __name__ == "__main__":
    main()
