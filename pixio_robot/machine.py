"""What a figure was measured on, for what stands beside it."""

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
