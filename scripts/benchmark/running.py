"""One process's share of a benchmark, and the report of all that is there."""

import logging
from functools import partial

from benchmark.cells import Worked, count_done, plan_cells, work
from benchmark.claims import check_report, claim
from benchmark.settings import CONTROLS, Benchmark, counted
from lerobot_env_pixio import check_rendering
from pixio_robot.errors import PixioRobotError

logger = logging.getLogger(__name__)


def run(config: Benchmark, *, command: str) -> None:
    """Fill in the cells that are not done, unless only the report is asked for; then write that.

    Raises:
        PixioRobotError: Settings that cannot be run, another benchmark's folder, or some cells broke; says which.
    """
    config.check()
    for name, control in CONTROLS.items():
        if name in config.without:
            logger.warning("The control arm %r is off: nothing will say %s.", name, control.answers)
    cells, worked = plan_cells(config), Worked(failed={}, elsewhere=[])
    if config.report_only:
        check_report(config)
    else:
        check_rendering()
        from benchmark.measuring import fill_cell  # these take ten seconds to import
        from benchmark.recipes import check_arms
        from benchmark.tasks import check_tasks

        check_arms(config)
        check_tasks(config)
        claim(config)
        worked = work(config.folder, cells, partial(fill_cell, config=config))
    from benchmark.reporting import write_report

    page = write_report(config, command=command)
    told = f"Report: {page}" if page else "There is nothing to report yet."
    print(f"{count_done(config.folder, cells)} of {len(cells)} cells are done. {told}")
    if worked.elsewhere:
        others = counted(len(worked.elsewhere), "cell")
        print(f"In other processes' hands: {others}. The process that is last writes the full report.")
    if worked.failed:  # as an exception, which comes home from a job of a cluster, as an exit code does not
        broke = "; ".join(f"{cell.name}, {error.splitlines()[0]}" for cell, error in worked.failed.items())
        raise PixioRobotError(f"{len(worked.failed)} of {len(cells)} cells broke: {broke}")
