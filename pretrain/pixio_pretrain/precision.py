"""What training and evaluation compute in: bfloat16 where the device multiplies it fast, else float32."""

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
    kind = torch.device(device).type
    if kind == "cpu":
        return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"
    able = kind == "cuda" and (not torch.cuda.is_available() or torch.cuda.get_device_properties(device).major >= 8)
    return "bf16" if able else "fp32"


def autocast(precision: str, device: str | torch.device) -> torch.autocast:
    """Compute what is inside in bfloat16, where ``precision`` says so; weights stay float32."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=resolve(precision, device) == "bf16")
