#!/usr/bin/env python
"""Render colour and exact depth from several calibrated cameras: a set to train on, and what was held out of it.

FOLDER/train is the training set. FOLDER/held_out/NAME are sets of other scenes, each with one thing more that the
training set never shows: "seen" nothing more, "scenes" other tasks and other things about, "textures", "lights",
"cameras" other looks, "all" everything at once. A killed run is taken up where it stopped.
"""

import argparse
from pathlib import Path

from pixio_robot.errors import SettingError, told_on_one_line

HELD_OUT = {"metaworld": ("coffee-button", "faucet-open", "assembly", "shelf-place"), "aloha": ("insertion",)}
"""Suite to the tasks of 'scenes' and 'all', where no others are named."""


@told_on_one_line("render_rgbd")
def main() -> None:
    """Read the command line and render."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the sets go")
    parser.add_argument("--suite", default="metaworld", help="metaworld or aloha")
    parser.add_argument("--tasks", nargs="+", help="tasks to train on; all others if left out")
    parser.add_argument("--held-out-tasks", nargs="+", help="tasks of 'scenes' and 'all'; a few if left out")
    parser.add_argument("--scenes-per-task", type=int, default=40, help="scenes of each task to train on")
    parser.add_argument("--held-out-scenes", type=int, default=24, help="scenes of each held-out set")
    parser.add_argument("--moments", type=int, default=1, help="points in time of each scene")
    parser.add_argument("--cameras", nargs="+", help="cameras that look each time; the tasks' own first if left out")
    parser.add_argument("--free", type=int, default=2, help="further cameras, anywhere around the table")
    parser.add_argument("--size", type=int, nargs="+", default=[128], help="pixels of a side, or height and width")
    parser.add_argument("--first-seed", type=int, default=200_000, help="where this set's scenes begin")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    args = parser.parse_args()

    from lerobot_env_pixio import find_tasks
    from lerobot_env_pixio.rgbd import render_rgbd  # after --help
    from lerobot_env_pixio.rgbd_stage import ASPECTS

    held_out_tasks = [task.name for task in find_tasks(args.suite, args.held_out_tasks or HELD_OUT.get(args.suite, ()))]
    train = [task.name for task in find_tasks(args.suite, args.tasks or "all")]
    if args.tasks is None:
        train = [name for name in train if name not in held_out_tasks]
    if both := [name for name in train if name in held_out_tasks]:
        raise SettingError(f"{', '.join(both)}: in --tasks and in --held-out-tasks. Name others in one of them.")
    size = args.size[0] if len(args.size) == 1 else tuple(args.size)
    shared = {"suite": args.suite, "cameras": args.cameras, "free": args.free, "size": size, "workers": args.workers}
    shared |= {"moments": args.moments}
    first, count = args.first_seed, args.scenes_per_task
    print(render_rgbd(args.folder / "train", tasks=train, scenes_per_task=count, first_seed=first, **shared))
    first += len(train) * count
    for name in ("seen", *ASPECTS, "all"):
        tasks = held_out_tasks if name in ("scenes", "all") else train
        held_out = {"seen": (), "all": ASPECTS}.get(name, (name,))
        count = -(-args.held_out_scenes // len(tasks))
        where = args.folder / "held_out" / name
        print(render_rgbd(where, tasks=tasks, scenes_per_task=count, held_out=held_out, first_seed=first, **shared))
        first += len(tasks) * count


if __name__ == "__main__":
    main()
