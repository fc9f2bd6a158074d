"""What long work on disk needs: to be alone at it, and to stop when it is asked to."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pixio_robot.errors import PixioRobotError, SettingError

GRACE = 10.0
"""Seconds for which a lock is waited for. It ends with the process that holds it and with that one's children, and
PyTorch's loader workers take some 5 seconds to notice that they were orphaned by a kill."""


@contextmanager
def alone(lock: Path, refusal: PixioRobotError) -> Iterator[None]:
    """Keep all other processes out while the block runs; however the process ends, no lock stays behind.

    Args:
        lock: The file to lock; its folder is made if need be.
        refusal: What to raise if another process has it and does not end in time.

    Raises:
        SettingError: If the folder cannot be written to.
    """
    guard = FileLock(lock, timeout=GRACE)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        guard.acquire()
    except Timeout as error:
        raise refusal from error
    except OSError as error:
        raise SettingError(f"{lock.parent} cannot be written to: {error.strerror or error}.") from error
    try:
        yield
    finally:
        guard.release()


@contextmanager
def termination() -> Iterator[threading.Event]:
    """Take note of SIGTERM, rather than die of it. Only the main thread hears signals; others change nothing."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
