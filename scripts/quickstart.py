"""From rendered pixels to a measured policy: demonstrations, feature caches, three policies, rollouts, a report.

Three policies learn from the same expert demonstrations of a robot arm: one sees through the frozen Pixio encoder that
comes with this package, one through the same network with random weights, one not at all. Each is then measured on the
same held-out scenes. A stage that is done is skipped and one that was killed continues, so the command can simply be
given again.
"""

import argparse
import os
from pathlib import Path

from pixio_robot.errors import told_on_one_line


@told_on_one_line("quickstart")
def main() -> None:
    """Read the command line and run. Imports wait until then, so that --help is quick."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("outputs/quickstart"), help="where everything goes")
    parser.add_argument("--rollouts", type=int, default=60, help="held-out episodes per policy (default: 60)")
    parser.add_argument("--steps", type=int, default=1500, help="training steps per policy (default: 1500)")
    parser.add_argument("--demonstrations", type=int, default=25, help="expert episodes per task (default: 25)")
    parser.add_argument(
        "--pick-place",
        action="store_true",
        help="add pick-place, the task that tells good features from bad ones: 100 demonstrations, twice the steps",
    )
    parser.add_argument(
        "--workers", type=int, default=min(8, os.cpu_count() or 1), help="threads, and processes for simulation"
    )
    options = parser.parse_args()

    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here needs the hub; a mistake should fail at once
    from lerobot_env_pixio import check_rendering

    check_rendering()
    from comparison import Plan, run

    sizes = {"rollouts": options.rollouts}
    plans = [
        Plan(
            task="button-press-topdown-v3",
            demonstrations=options.demonstrations,
            steps=options.steps,
            **sizes,
        )
    ]
    if options.pick_place:
        plans.append(Plan(task="pick-place-v3", demonstrations=100, steps=2 * options.steps, **sizes))
    run(plans, options.folder, workers=options.workers)


if __name__ == "__main__":
    main()
