"""Worker processes for simulation: spawned, one thread each, gone when their parent is."""

import multiprocessing
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from types import ModuleType

from pixio_robot.errors import RenderError

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


@contextmanager
def without_main_script(sent: object) -> Iterator[None]:
    """Have processes that start inside leave the main script alone, unless what is ``sent`` to them is defined there.

    Python has a spawned process import it first. A script without ``if __name__ == "__main__"`` would do its work again
    in each of them, and one that imports LeRobot would keep them waiting for ten seconds.
    """
    main = sys.modules["__main__"]
    if b"__main__" not in pickle.dumps(sent):
        sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def run_jobs[Job, Result](function: Callable[[Job], Result], jobs: Iterable[Job], *, workers: int) -> Iterator[Result]:
    """Call a module-level function on every job in worker processes; yield results as they come.

    The first exception of a job is raised here, and the jobs that have not begun are dropped.

    Raises:
        RenderError: If a process died.
    """
    jobs = list(jobs)
    with ProcessPoolExecutor(workers, mp_context=SPAWN, initializer=settle_in) as pool:
        with without_main_script((function, jobs)):
            futures = [pool.submit(function, job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise RenderError(
                f"One of {workers} processes died: too little memory for so many, or a driver that cannot render. Give "
                "the command again, with fewer workers."
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
