"""Whether as many environments as are asked for fit into this machine's memory."""

from lerobot_env_pixio.suites import find_suite
from pixio_robot.errors import SettingError
from pixio_robot.machine import free_memory

_PROCESS = 250  # megabytes that a worker process takes before its first environment, measured on Linux with Mesa


def refuse_too_many(suite: str, *, slots: int, workers: int) -> None:
    """Let a number of environments pass only if they fit. Where nobody knows how much memory is free, all pass.

    Args:
        suite: What runs in them.
        slots: Environments.
        workers: Processes that share them.

    Raises:
        SettingError: They do not fit; says how many would.
    """
    unused, each = free_memory(), find_suite(suite).megabytes
    needed = workers * _PROCESS + slots * each
    if unused is not None and needed > (free := unused // 2**20):
        fitting = max((free - workers * _PROCESS) // each, 0)
        raise SettingError(
            f"slots={slots}, workers={workers}: about {needed} MB of memory for environments of {suite!r}, and "
            f"{free} MB are free. With {workers} workers, slots={fitting} would fit."
        )
