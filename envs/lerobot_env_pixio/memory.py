"""Whether as many environments as are asked for fit into this machine's memory."""

from pathlib import Path

from lerobot_env_pixio.suites import find_suite
from pixio_robot.errors import SettingError

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
    free, each = free_megabytes(), find_suite(suite).megabytes
    needed = workers * _PROCESS + slots * each
    if free is not None and needed > free:
        fitting = max((free - workers * _PROCESS) // each, 0)
        raise SettingError(
            f"slots={slots}, workers={workers}: about {needed} MB of memory for environments of {suite!r}, and "
            f"{free} MB are free. With {workers} workers, slots={fitting} would fit."
        )


def free_megabytes() -> int | None:
    """Give what may still be used here: the machine's own or this container's, whichever is less. None if unknown."""
    found = [_free_in_machine(), _free_in_container(Path("/sys/fs/cgroup"))]
    return min((number for number in found if number is not None), default=None)


def _free_in_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None  # no Linux
    amounts = dict(line.split(":") for line in lines)
    return int(amounts["MemAvailable"].split()[0]) // 1024 if "MemAvailable" in amounts else None


def _free_in_container(folder: Path) -> int | None:
    """Read the limit of control groups, version 2, whose cached files count as used but make room when it is needed."""
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
        amounts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:
        return None
    cached = sum(int(amounts.get(name, 0)) for name in ("active_file", "inactive_file"))
    return None if limit == "max" else max(int(limit) - used + cached, 0) // 2**20
