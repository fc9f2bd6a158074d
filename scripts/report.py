"""The quickstart's report: one self-contained HTML page, computed from records and logs, never typed."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from page import to_base64, to_svg, write_page
from PIL import Image
from torch import Tensor

from lerobot_env_pixio import EpisodeRecord, PairedComparison, paired, wilson
from pixio_pretrain.probe.components import component_colors
from pixio_robot import Encoder


@dataclass(frozen=True, kw_only=True)
class ArmResult:
    """What one arm did on one task."""

    name: str
    label: str
    color: str
    records: Sequence[EpisodeRecord]
    losses: Sequence[tuple[int, float]]
    video: bytes | None

    @property
    def valid(self) -> list[EpisodeRecord]:
        """The episodes that ran to their end: a crash of the simulator is nobody's failure."""
        return [record for record in self.records if record.error is None]

    @property
    def successes(self) -> int:
        """Number of successful episodes."""
        return sum(bool(record.success) for record in self.valid)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the success rate."""
        return wilson(self.successes, len(self.valid))


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """What every arm did on one task: the pre-trained arm first."""

    name: str
    text: str
    demonstrations: str
    training: str
    arms: Sequence[ArmResult]


def pair(first: ArmResult, second: ArmResult) -> PairedComparison:
    """Compare two arms on the seeds that both ran."""
    left = {record.env_seed: bool(record.success) for record in first.valid}
    right = {record.env_seed: bool(record.success) for record in second.valid}
    seeds = sorted(left.keys() & right.keys())
    return paired([left[seed] for seed in seeds], [right[seed] for seed in seeds])


def compare(first: ArmResult, second: ArmResult) -> dict[str, str]:
    """One row of the table of paired differences."""
    result = pair(first, second)
    return {
        "name": f"{first.label} − {second.label}",
        "difference": f"{100 * result.difference:+.0f} points, n = {result.n}",
        "interval": f"{100 * result.low:+.0f} to {100 * result.high:+.0f}",
        "only": f"{result.only_a} / {result.only_b}",
        "p": f"{result.p_value:.2g}",
    }


def reading(arms: Sequence[ArmResult]) -> list[str]:
    """Say in words what the numbers allow to be said: whether the interval of a paired difference leaves out zero."""
    pixio, blind, random = arms
    seeing, pretraining = pair(pixio, blind), pair(pixio, random)
    sentences = [f"{arm.label}: {arm.successes} of {len(arm.valid)} ({_percent(*arm.interval)})." for arm in arms]
    if seeing.low > 0:
        sentences.append("Seeing helps: on the same seeds, Pixio features do better than none, beyond chance.")
    elif seeing.high < 0:
        sentences.append("Seeing hurts here: on the same seeds, the blind policy does better, beyond chance.")
    else:
        sentences.append("Whether seeing helps cannot be told here: on the same seeds, the difference may be chance.")
    if pretraining.low > 0:
        sentences.append("Pre-training helps: on the same seeds, it does better than random weights, beyond chance.")
    elif pretraining.high < 0:
        sentences.append("Pre-training hurts here: on the same seeds, random weights do better, beyond chance.")
    elif pair(random, blind).low > 0:
        sentences.append(
            "A frozen encoder with random weights passes here as well. So this task shows that the path from pixels to "
            "a measured policy works; it does not show that pre-training helps."
        )
    else:
        sentences.append("Pre-trained and random weights cannot be told apart here: the difference may be chance.")
    sentences.append("Each policy was trained once: the intervals speak of scenes, not of the luck of training.")
    return sentences


def rates_svg(arms: Sequence[ArmResult]) -> str:
    """Draw each arm's success rate with its interval."""
    figure, axis = plt.subplots(figsize=(6.4, 0.5 * len(arms) + 0.7))
    for row, arm in enumerate(reversed(arms)):
        low, high = arm.interval
        axis.plot([100 * low, 100 * high], [row, row], color=arm.color, linewidth=7, alpha=0.35, solid_capstyle="round")
        axis.plot(100 * arm.successes / max(1, len(arm.valid)), row, "o", color=arm.color, markersize=9)
    axis.set_yticks(range(len(arms)), [arm.label for arm in reversed(arms)])
    axis.set_xlim(-2, 102)
    axis.set_ylim(-0.6, len(arms) - 0.4)
    axis.set_xlabel("success on held-out seeds, %")
    axis.grid(axis="x", alpha=0.3)
    return to_svg(figure)


def losses_svg(arms: Sequence[ArmResult]) -> str:
    """Draw each arm's training loss."""
    figure, axis = plt.subplots(figsize=(6.4, 3))
    for arm in arms:
        steps, losses = zip(*arm.losses, strict=True)
        axis.plot(steps, losses, color=arm.color, label=arm.label, linewidth=1.6)
    axis.set(xlabel="training step", ylabel="L1 loss of normalised actions", yscale="log")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    return to_svg(figure)


def pca_picture(frames: Tensor, encoders: Sequence[Encoder], *, side: int = 128) -> Image.Image:
    """Picture the first three principal components of patch features as red, green and blue.

    Args:
        frames: uint8 [n 3 h w], one row of the picture each.
        encoders: One column each, right of the frame.
        side: Side of each tile in pixels.
    """
    columns = [frames]
    for encoder in encoders:
        tokens = encoder(frames)
        colors = component_colors(tokens.patches).view(len(frames), *tokens.grid, 3)
        columns.append((255 * colors).to(torch.uint8).permute(0, 3, 1, 2))
    tiles = [torch.nn.functional.interpolate(column.float(), size=(side, side), mode="nearest") for column in columns]
    rows = torch.cat(tiles, dim=3).to(torch.uint8)  # n 3 side columns*side
    return Image.fromarray(torch.cat(list(rows), dim=1).permute(1, 2, 0).numpy())


def write_report(
    path: Path,
    *,
    tasks: Sequence[TaskResult],
    pca: Image.Image,
    reconstructions: Path,
    facts: Mapping[str, str],
    settings: Mapping[str, Any],
) -> None:
    """Write the page, whole or not at all.

    Args:
        path: The HTML file.
        tasks: Results per task, arms ordered pre-trained, blind, random.
        pca: The picture of patch features.
        reconstructions: A PNG of masked frames, reconstructions and originals.
        facts: date, machine, duration, command.
        settings: Everything needed to repeat the run.
    """
    buffer = io.BytesIO()
    pca.save(buffer, format="PNG")
    write_page(
        path,
        Path(__file__).with_name("report.html.jinja"),
        title="From rendered pixels to a measured policy",
        tasks=[_task(task) for task in tasks],
        pca=to_base64(buffer.getvalue()),
        reconstructions=to_base64(reconstructions.read_bytes()),
        settings=json.dumps(settings, indent=2, default=str),
        **facts,
    )


def _task(task: TaskResult) -> dict[str, Any]:
    first = task.arms[0]
    errors = sum(len(arm.records) - len(arm.valid) for arm in task.arms)
    return {
        "name": task.name,
        "text": task.text,
        "demonstrations": task.demonstrations,
        "training": task.training,
        "reading": reading(task.arms),
        "arms": [arm_row(arm) for arm in task.arms],
        "pairs": [compare(first, other) for other in task.arms[1:]],
        "errors": f"{errors} episodes ended in an error of the simulator and count for nobody." if errors else "",
        "rates_svg": rates_svg(task.arms),
        "loss_svg": losses_svg(task.arms),
        "videos": [
            {"data": to_base64(arm.video), "color": arm.color, "caption": _caption(arm)}
            for arm in task.arms
            if arm.video
        ],
    }


def arm_row(arm: ArmResult) -> dict[str, Any]:
    """One row of the table of success rates."""
    steps = [record.steps for record in arm.valid if record.success]
    return {
        "label": arm.label,
        "color": arm.color,
        "successes": arm.successes,
        "episodes": len(arm.valid),
        "rate": f"{100 * arm.successes / max(1, len(arm.valid)):.0f} %",
        "interval": _percent(*arm.interval),
        "steps": f"median {np.median(steps):.0f}" if steps else "none",
    }


def _caption(arm: ArmResult) -> str:
    first = arm.records[0]
    outcome = "success" if first.success else "no success"
    return f"{arm.label}: seed {first.env_seed}, {outcome} after {first.steps} steps"


def _percent(low: float, high: float) -> str:
    return f"{100 * low:.0f} to {100 * high:.0f} %"
