"""This machine: what a figure was measured on, and how much memory is left."""

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def device_name(device: "str | torch.device" = "cpu") -> str:
    """Name a GPU, or this machine's CPU, as far as the system tells."""
    if str(device).startswith("cuda"):
        import torch  # slow, and simulator processes want names, too

        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine_name(device: "str | torch.device" = "cpu") -> str:
    """Name a machine: its CPU and cores, and the GPU if ``device`` is one."""
    gpu = device_name(device) if str(device).startswith("cuda") else "no GPU"
    return f"{device_name()}, {os.cpu_count()} cores, {gpu}"


def free_memory(device: "str | torch.device" = "cpu") -> int | None:
    """Bytes that may still be used: of a GPU, or of this machine or container, whichever has less. None if unknown."""
    if str(device).startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0]
    found = [_free_in_machine(), _free_in_container(Path("/sys/fs/cgroup"))]
    return min((number for number in found if number is not None), default=None)


def _free_in_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None  # no Linux
    amounts = dict(line.split(":") for line in lines)
    return int(amounts["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in amounts else None


def _free_in_container(folder: Path) -> int | None:
    """Read the limit of control groups, version 2, whose cached files count as used but make room when it is needed."""
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
        amounts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:
        return None
    cached = sum(int(amounts.get(name, 0)) for name in ("active_file", "inactive_file"))
    return None if limit == "max" else max(int(limit) - used + cached, 0)
