"""What training and evaluation compute in: bfloat16 where the device multiplies it fast, else float32."""

import torch

from pixio_robot.errors import SettingError

PRECISIONS = ("auto", "bf16", "fp32")


def resolve(precision: str, device: str | torch.device) -> str:
    """Say what "auto" means on a device: "bf16" on GPUs and CPUs that multiply bfloat16 natively, else "fp32".

    A CPU without AVX512-BF16 or AMX emulates bfloat16, which takes many times as long as float32. On its own core,
    such as that of a Ryzen 5000, "auto" is what makes the difference between minutes and hours.

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
    able = kind == "cuda" and (not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False))
    return "bf16" if able else "fp32"


def autocast(precision: str, device: str | torch.device) -> torch.autocast:
    """Compute what is inside in bfloat16, where ``precision`` says so; weights stay float32."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=resolve(precision, device) == "bf16")
