"""How long one look takes: torch without any compiler, and every runtime, in turns."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.utils import tqdm

from pixio_robot.adapter import VisualFeatureAdapter
from pixio_robot.checkpoints import load_encoder
from pixio_robot.drafts import write_whole
from pixio_robot.encoder import Encoder, EncoderSpec
from pixio_robot.errors import SettingError
from pixio_robot.export.backends import Precision, installed, open_session
from pixio_robot.export.convert import FILE
from pixio_robot.export.folder import ExportFacts, read_facts, read_selftest
from pixio_robot.export.gate import ask, compare
from pixio_robot.export.graph import OnePass
from pixio_robot.geometry.depth import DepthModel, DepthSettings
from pixio_robot.machine import device_name

REPORT = "latency.json"
EAGER = "torch, eager"
CALLS = 3
"""Calls that are timed each time it is a runtime's turn, after one that is not: it brings the weights into the caches,
as in a robot that runs nothing else."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Latency:
    """Milliseconds of one call in one runtime.

    Attributes:
        arm: Which runtime.
        precision: What it computed in.
        median: Over all timed calls.
        p95: 95 of 100 calls took no longer.
        speedup: How many times as fast as eager torch: the median over rounds of the quotients of a round's medians.
        deviation: How far off torch's the self-test's answers are, by output, as the gate measures it.
    """

    arm: str
    precision: Precision
    median: float
    p95: float
    speedup: float
    deviation: dict[str, float]


def measure(
    folder: str | Path,
    *,
    threads: int = 1,
    rounds: int = 15,
    backends: Sequence[str] | None = None,
    bfloat16: bool = False,
) -> list[Latency]:
    """Time an export beside eager torch on this CPU, and write ``latency.json`` into its folder.

    Torch runs a model of the same sizes with fresh weights; they do not matter for time. Every round gives each runtime
    a turn, so that a busy machine slows all of them alike.

    Args:
        folder: What ``export`` wrote.
        threads: Of torch and of every runtime.
        rounds: Turns of each.
        backends: Which; all that are installed when absent.
        bfloat16: OpenVINO in bfloat16, too.

    Raises:
        ExportError: The export is not sound.
        SettingError: No rounds or threads.
        UnknownNameError: No such backend.
        CheckpointError: An encoder of another family than ours, whose weights are not to be found.
    """
    if rounds < 1 or threads < 1:
        raise SettingError(f"rounds={rounds}, threads={threads}: at least 1 of each.")
    folder = Path(folder).expanduser()
    facts = read_facts(folder)
    inputs, outputs = read_selftest(folder)
    feed = {name: x[: facts.batch or 1] for name, x in inputs.items()}
    arms: dict[tuple[str, Precision], Callable[[], object]] = {}
    deviations: dict[tuple[str, Precision], dict[str, float]] = {(EAGER, "float32"): {}}
    wanted: dict[tuple[str, Precision], None] = {(name, "float32"): None for name in backends or installed()}
    if bfloat16:
        wanted["openvino", "bfloat16"] = None
    with _threads(threads), torch.inference_mode():
        model, tensors = rebuild(facts), {name: torch.from_numpy(x) for name, x in feed.items()}
        arms[EAGER, "float32"] = lambda: model(**tensors)
        for name, precision in wanted:
            session = open_session(folder / FILE, name, threads=threads, precision=precision)
            found = compare(ask(session, inputs, facts.batch), outputs)
            deviations[name, precision] = {one.output: one.scaled for one in found}
            arms[name, precision] = lambda session=session: session(feed)
        times = {key: np.zeros((rounds, CALLS)) for key in arms}
        for number in tqdm(range(rounds), desc="timing", unit="round"):
            for key, call in arms.items():
                times[key][number] = _time(call)
    eager = np.median(times[EAGER, "float32"], axis=1)
    report = [
        Latency(
            arm=name,
            precision=precision,
            median=round(1e3 * float(np.median(seconds)), 3),
            p95=round(1e3 * float(np.percentile(seconds, 95)), 3),
            speedup=round(float(np.median(eager / np.median(seconds, axis=1))), 3),
            deviation=deviations[name, precision],
        )
        for (name, precision), seconds in times.items()
    ]
    _write(folder / REPORT, report, facts, threads=threads, rounds=rounds)
    return report


def rebuild(facts: ExportFacts) -> OnePass:
    """Build a torch model of an export's sizes, with fresh weights where the encoder is of our families.

    Raises:
        CheckpointError: An encoder of another family, whose weights are not to be found.
        UnknownNameError: The same, by its name.
    """
    spec = EncoderSpec(**facts.encoder["spec"])
    source = facts.encoder.get("source") or str(facts.encoder["name"])
    encoder = Encoder(spec) if spec.family in ("pixio", "mae") else load_encoder(source)
    depth = None if facts.depth is None else DepthModel(encoder, DepthSettings(**facts.depth))
    adapter = None if facts.adapter is None else VisualFeatureAdapter(**facts.adapter)
    return OnePass(encoder, depth=depth, adapter=adapter)


def show(report: Sequence[Latency]) -> str:
    """Lay a report out as a table in Markdown."""
    lines = [
        "| runtime | precision | median ms | p95 ms | times eager | off by |",
        "|---|---|---|---|---|---|",
    ]
    for row in report:
        worst = max(row.deviation.values(), default=0.0)
        told = f"{worst:.1e}" if row.deviation else "-"
        lines.append(f"| {row.arm} | {row.precision} | {row.median:.1f} | {row.p95:.1f} | {row.speedup:.2f} | {told} |")
    return "\n".join(lines)


def _time(call: Callable[[], object]) -> list[float]:
    call()
    seconds = []
    for _ in range(CALLS):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return seconds


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _write(path: Path, report: Sequence[Latency], facts: ExportFacts, *, threads: int, rounds: int) -> None:
    known: dict[str, Any] = {
        "encoder": facts.encoder["name"],
        "size": facts.size,
        "batch": facts.batch or 1,
        "cameras": facts.cameras,
        "depth": facts.depth and facts.depth["head"],
        "adapter": facts.adapter is not None,
        "cpu": device_name(),
        "threads": threads,
        "rounds": rounds,
        "calls_per_round": CALLS,
        "torch": torch.__version__,
        "latency": [asdict(row) for row in report],
    }
    write_whole(path, json.dumps(known, indent=2) + "\n")
