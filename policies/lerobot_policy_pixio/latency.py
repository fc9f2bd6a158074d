"""``pixio-latency``: how long a policy takes to see and to plan, on this machine."""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.import_utils import register_third_party_plugins
from rich.console import Console
from rich.table import Table
from torch import nn

from lerobot_policy_pixio.acting import find_checkpoint, open_checkpoint
from lerobot_policy_pixio.modeling_pixio import PixioPolicy
from lerobot_policy_pixio.options import EncoderDtype
from pixio_robot.drafts import write_whole
from pixio_robot.errors import told_on_one_line
from pixio_robot.machine import device_name

WARM_UP = 3


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds of one policy in one precision, as [p50, p95].

    Attributes:
        dtype: "float32", or "bfloat16" for autocast and an encoder in that type.
        encoder: In the visual backbone, for one new chunk of actions.
        head: In the rest of the policy, for one new chunk.
        processors: In LeRobot's pre- and postprocessor.
        total: From an observation to the first action of a new chunk.
        per_action: The total and the ``n_action_steps`` - 1 actions that follow without a look, spread over all.
    """

    dtype: EncoderDtype
    encoder: list[float]
    head: list[float]
    processors: list[float]
    total: list[float]
    per_action: list[float]


@told_on_one_line("pixio-latency")
def main() -> None:
    """Run the command."""
    options = _parse(sys.argv[1:])
    register_third_party_plugins()
    if options.threads:
        torch.set_num_threads(options.threads)
    console = Console()
    found = [measure(options.checkpoint, dtype=dtype, **_what(options)) for dtype in options.dtype]
    facts = describe(options.checkpoint, options.device, options.camera_size)
    facts |= {"compiled": options.compile, "repeats": options.repeats}
    console.print(_table(found, facts))
    if options.json:
        write_whole(options.json, json.dumps(facts | {"latency_ms": [asdict(row) for row in found]}, indent=2) + "\n")
        console.print(f"Figures: {options.json}")


def measure(
    checkpoint: str | Path,
    *,
    device: str | None = None,
    dtype: EncoderDtype = "float32",
    compiled: bool = False,
    repeats: int = 30,
    camera_size: tuple[int, int] | None = None,
) -> Latency:
    """Time a policy on random observations, one robot at a time.

    Args:
        checkpoint: A ``pretrained_model`` folder of LeRobot, or the run around it: pixio_act, pixio_diffusion, or any
            policy with its backbone where ACT or Diffusion have it.
        device: Where to run; where it was trained when absent.
        dtype: "float32" or "bfloat16".
        compiled: Run backbone and head through ``torch.compile``.
        repeats: Measured chunks, after a few to warm up.
        camera_size: (height, width) of the cameras' images; those of training when absent.

    Raises:
        CheckpointError: If there is no such checkpoint, or its encoder is missing.
        SettingError: If the device is not there.
    """
    policy, preprocessor, postprocessor = open_checkpoint(checkpoint, device=device, dtype=dtype)
    if compiled:
        for module in (*encoders_of(policy), *_heads_of(policy)):
            module.forward = torch.compile(module.forward)  # not module.compile(): that would compile our clock, too
    config = policy.config
    observation = _observe(config, camera_size)
    steps, on = int(getattr(config, "n_action_steps", 1)), torch.device(str(config.device))
    rows: list[list[float]] = []
    with _watching(encoders_of(policy), on) as seeing:
        for _ in range(WARM_UP + repeats):
            seeing.clear()
            policy.reset()
            began = _now(on)
            with torch.inference_mode(), torch.autocast(on.type, torch.bfloat16, enabled=dtype == "bfloat16"):
                batch = preprocessor(dict(observation))
                ready = _now(on)
                action = policy.select_action(batch)
                planned, encoder = _now(on), sum(seeing)
                postprocessor(action)
                first = _now(on)
                for _ in range(steps - 1):
                    postprocessor(policy.select_action(preprocessor(dict(observation))))
            planning, total = planned - ready, first - began
            rows.append([encoder, planning - encoder, total - planning, total, (_now(on) - began) / steps])
    percentiles = np.percentile(1000 * np.array(rows[WARM_UP:]), [50, 95], axis=0).T.round(3).tolist()
    names = ("encoder", "head", "processors", "total", "per_action")
    return Latency(dtype=dtype, **dict(zip(names, percentiles, strict=True)))


def encoders_of(policy: PreTrainedPolicy) -> list[nn.Module]:
    """The modules that turn images into features: ours, or the backbones of LeRobot's ACT and Diffusion."""
    if isinstance(policy, PixioPolicy):
        return [] if policy.eyes is None else [policy.eyes.encoder]
    for path in ("model.backbone", "diffusion.rgb_encoder"):
        try:
            found = policy.get_submodule(path)
        except AttributeError:
            continue
        return list(found) if isinstance(found, nn.ModuleList) else [found]
    return []


def describe(checkpoint: str | Path, device: str | None, camera_size: tuple[int, int] | None) -> dict[str, Any]:
    """Where and on what a measurement was made."""
    config = PreTrainedConfig.from_pretrained(find_checkpoint(checkpoint))
    device = device or str(config.device)
    return {
        "checkpoint": str(checkpoint),
        "policy": config.type,
        "encoder": getattr(config, "encoder", getattr(config, "vision_backbone", None)),
        "cameras": {
            name: [feature.shape[0], *(camera_size or feature.shape[1:])]
            for name, feature in config.image_features.items()
        },
        "n_action_steps": getattr(config, "n_action_steps", 1),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "packages": {name: version(name) for name in ("torch", "lerobot")},
    }


def _heads_of(policy: PreTrainedPolicy) -> Iterator[nn.Module]:
    for path in ("model.encoder", "model.decoder", "diffusion.unet"):
        try:
            yield policy.get_submodule(path)
        except AttributeError:
            continue


def _observe(config: PreTrainedConfig, camera_size: tuple[int, int] | None) -> dict[str, Any]:
    """Noise in the shapes of the policy's inputs, as an environment would give it."""
    chance = torch.Generator().manual_seed(0)
    seen: dict[str, Any] = {"task": [(getattr(config, "tasks", None) or [""])[0]]}
    for name, feature in (config.input_features or {}).items():
        shape = tuple(feature.shape)
        if name in config.image_features and camera_size is not None:
            shape = (shape[0], *camera_size)
        seen[name] = torch.rand(1, *shape, generator=chance)
    return seen


@contextmanager
def _watching(modules: Sequence[nn.Module], device: torch.device) -> Iterator[list[float]]:
    """Seconds of each call of some modules."""
    seconds: list[float] = []
    began: list[float] = []
    hooks = [
        hook
        for module in modules
        for hook in (
            module.register_forward_pre_hook(lambda *_: began.append(_now(device))),
            module.register_forward_hook(lambda *_: seconds.append(_now(device) - began.pop())),
        )
    ]
    try:
        yield seconds
    finally:
        for hook in hooks:
            hook.remove()


def _now(device: torch.device) -> float:
    """The time in seconds once the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _table(found: Sequence[Latency], facts: dict[str, Any]) -> Table:
    device = f"{facts['device']}, {facts['threads']} threads" if "CPU" in facts["device"] else facts["device"]
    table = Table(title=f"{facts['policy']} on {facts['encoder']}, {device}", title_justify="left")
    for column in (
        "ms, p50 / p95",
        "encoder",
        "head",
        "pre, post",
        "new chunk",
        f"per action of {facts['n_action_steps']}",
    ):
        table.add_column(column, justify="left" if column.startswith("ms") else "right")
    for row in found:
        cells = (row.encoder, row.head, row.processors, row.total, row.per_action)
        table.add_row(row.dtype, *(f"{p50:.2f} / {p95:.2f}" for p50, p95 in cells))
    return table


def _what(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "device": options.device,
        "compiled": options.compile,
        "repeats": options.repeats,
        "camera_size": tuple(options.camera_size) if options.camera_size else None,
    }


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="pixio-latency", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="a pretrained_model folder of LeRobot, or the run around it")
    parser.add_argument("--device", help="cpu, cuda, ...; where it was trained when absent")
    parser.add_argument(
        "--dtype", nargs="+", choices=get_args(EncoderDtype), default=get_args(EncoderDtype), help="default: both"
    )
    parser.add_argument("--compile", action="store_true", help="run backbone and head through torch.compile")
    parser.add_argument("--repeats", type=int, default=30, help="measured chunks (default: 30)")
    parser.add_argument(
        "--camera-size", type=int, nargs=2, metavar=("H", "W"), help="pixels; as in training when absent"
    )
    parser.add_argument("--threads", type=int, help="threads of the arithmetic on a CPU")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    return options
