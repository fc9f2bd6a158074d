"""What training and evaluation compute on, and in: bfloat16 where the device multiplies it fast, else float32."""

import torch

from pixio_robot.errors import SettingError

PRECISIONS = ("auto", "bf16", "fp32")


def resolve(precision: str, device: str | torch.device) -> str:
    """Say what "auto" means on a device: "bf16" on NVIDIA GPUs since Ampere and on x86 with AVX512-BF16 or AMX.

    Anything else gets "fp32": a CPU that has to emulate bfloat16 takes many times as long as with float32.

    Args:
        precision: "auto", "bf16" (autocast; weights stay float32) or "fp32".
        device: Where it will run. A GPU that is not in this machine counts as one that can.

    Raises:
        SettingError: Another word.
    """
    if precision not in PRECISIONS:
        raise SettingError(f"precision must be auto, bf16 or fp32, not {precision!r}.")
    if precision != "auto":
        return precision
    kind = str(device).partition(":")[0]
    if kind == "cpu":
        return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"
    return "bf16" if kind == "cuda" and _multiplies_bfloat16(device) else "fp32"


def _multiplies_bfloat16(gpu: str | torch.device) -> bool:
    try:
        return torch.cuda.get_device_properties(gpu).major >= 8
    except (RuntimeError, AssertionError):  # it is not in this machine
        return True


def check_device(device: str) -> None:
    """Refuse a device that is not in this machine, before anything is read for it.

    Raises:
        SettingError: Saying why, and which there are.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        known = ", ".join(["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))])
        reason = str(error).partition(". ")[0]
        raise SettingError(f"device={device} cannot be used here, where there are {known}: {reason}.") from error


def autocast(precision: str, device: str | torch.device) -> torch.autocast:
    """Compute what is inside in bfloat16, where ``precision`` says so; weights stay float32."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=resolve(precision, device) == "bf16")
