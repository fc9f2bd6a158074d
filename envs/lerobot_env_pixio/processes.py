"""Worker processes for simulation: spawned, one thread each, gone when their parent is."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.connection import wait

SPAWN = multiprocessing.get_context("spawn")
"""A forked process would inherit an OpenGL context that it cannot use, and hang."""


def settle_in() -> None:
    """Keep the software renderer and OpenMP to one thread, and end this process when its parent is no more."""
    os.environ["LP_NUM_THREADS"] = "1"
    os.environ["OMP_NUM_THREADS"] = "1"
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def run_jobs[Job, Result](function: Callable[[Job], Result], jobs: Iterable[Job], *, workers: int) -> Iterator[Result]:
    """Call a module-level function on every job in worker processes; yield results as they come.

    The first exception of a job is raised here, and the jobs that have not begun are dropped.
    """
    with ProcessPoolExecutor(workers, mp_context=SPAWN, initializer=settle_in) as pool:
        futures = [pool.submit(function, job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
