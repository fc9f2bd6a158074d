#!/usr/bin/env python
r"""Do probes rank encoders as rollouts do? Spearman's rank correlation of read-out errors with success rates.

A probe takes minutes, a benchmark's cell many more; whether the one may stand for the other is a question of its own.
Give what compare_encoders.py and run_benchmark.py wrote:

    scripts/rank_by_probes.py outputs/encoders outputs/benchmark/standard

Encoders are matched by the hash of their weights, tasks by name; at least three encoders must be in both. Arms with
options of their own (another read-out, a trained encoder) are left out, since the probes did not see them so. The
command prints a table in Markdown: for every camera, thing and read-out, how the order of the errors agrees with the
order of the success rates (+1: the smaller the error, the more often the policy succeeds; -1: the other way round), by
task and on average. --picture draws the points behind one read-out.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
from benchmark.cells import plan_cells
from benchmark.claims import read_benchmark
from benchmark.results import make_panels
from benchmark.settings import CLEAN, Benchmark
from benchmark.tables import to_markdown
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import rankdata

from pixio_pretrain import probe
from pixio_pretrain.probe.resampling import interval, resampled_means
from pixio_robot.errors import DataError, UnknownNameError, told_on_one_line

Draws = NDArray[np.float64]
"""A figure and its resamples, as ``resampled_means`` gives them."""
ReadOut = tuple[str, str, str]
"""Camera, target and features."""
SHOWN = ("object", "fine grid")
"""What the picture shows, of the first camera."""
FEWEST = 3

READING = (
    "Spearman's rank correlation over encoders, turned so that +1 means: the smaller the error, the higher the success "
    "rate. In brackets the 95 % interval over other probe episodes, other scenes and other trainings of the policy; it "
    "does not speak of other encoders. With many read-outs some agree by luck: choose one before looking."
)


def read_rates(config: Benchmark, policy: str, condition: str) -> dict[str, dict[str, tuple[str, Draws]]]:
    """Give task, then encoder, to its arm's name and success rate.

    Raises:
        PixioRobotError: The benchmark has no such policy or condition, or a line of its records is no record.
    """
    for kind, name, known in (("policy", policy, config.policies), ("condition", condition, config.conditions)):
        if name not in known:
            raise UnknownNameError(kind, name, known)
    frozen = [arm for arm in config.arms if arm not in config.options]
    if {"random", next(iter(config.arms))}.isdisjoint(config.options):  # it reads tokens as the first arm does
        frozen.append("random")
    rates: dict[str, dict[str, tuple[str, Draws]]] = {}
    for panel in make_panels(config, plan_cells(config)):
        if panel.policy != policy or not panel.scores:
            continue
        cells: defaultdict[tuple[str, str], list[NDArray[np.float64]]] = defaultdict(list)
        for arm, filled in panel.cells.items():
            if arm in frozen:
                for one, row in zip(filled, panel.scores[condition][arm].successes, strict=True):
                    cells[one.facts["encoder"], arm].append(row.astype(float))
        rates[panel.task.name] = {
            encoder: (arm, resampled_means(np.array(rows), arm=encoder, stratum=f"scenes of {panel.task.name}"))
            for (encoder, arm), rows in cells.items()
        }
    return rates


def read_errors(folder: Path) -> dict[tuple[str, ReadOut], dict[str, Draws]]:
    """Give task and read-out, then encoder, to its mean distance from the truth in centimetres.

    Arms that were shown frames at another size (NAME@SIDE) are left out: no policy of the benchmark sees so.

    Raises:
        PixioRobotError: A line of some records is no record.
    """
    errors: defaultdict[tuple[str, ReadOut], dict[str, Draws]] = defaultdict(dict)
    for path in sorted((folder / "records").glob("*.jsonl")):
        for record in probe.read_records(path):
            found = record.measurement
            if found.metric == "distance" and record.encoder and "@" not in record.arm:
                values = 100 * np.array([found.values])
                key = found.task, (found.camera, found.target, found.features)
                errors[key][record.encoder] = resampled_means(values, arm=record.encoder, stratum=found.task)
    return dict(errors)


def agreement(errors: list[Draws], rates: list[Draws]) -> Draws:
    """Rank correlation of encoders' accuracies and rates, draw by draw.

    A draw in which all of one kind are alike agrees with nothing: 0. If they are so as measured, the value is NaN.
    """
    first, second = (rankdata(np.array(rows), axis=0) for rows in ([-row for row in errors], rates))
    first, second = first - first.mean(axis=0), second - second.mean(axis=0)
    norms = np.linalg.norm(first, axis=0) * np.linalg.norm(second, axis=0)
    found = np.divide((first * second).sum(axis=0), norms, out=np.zeros(norms.shape), where=norms > 0)
    found[0] = found[0] if norms[0] else np.nan
    return found


def say(found: Draws) -> str:
    """A correlation with its interval."""
    if np.isnan(found[0]):
        return "–"
    value, low, high = interval(found)
    return f"{value:+.2f} ({low:+.2f} to {high:+.2f})"


def tabulate(
    errors: dict[tuple[str, ReadOut], dict[str, Draws]], rates: dict[str, dict[str, tuple[str, Draws]]]
) -> str:
    """Give the table of all read-outs in Markdown.

    Raises:
        DataError: There is no task of which three encoders were both probed and rolled out.
    """
    tasks: dict[str, list[str]] = {}
    for task, found in rates.items():
        probed = set.union(set(), *(encoders for (name, _), encoders in errors.items() if name == task))
        shared = [encoder for encoder in found if encoder in probed]
        if len(shared) >= FEWEST:
            tasks[task] = shared
    if not tasks:
        rolled_out = ", ".join(f"{task} ({len(found)})" for task, found in rates.items())
        raise DataError(
            f"No task with {FEWEST} encoders that were both probed and rolled out. Probed: "
            f"{', '.join(sorted({task for task, _ in errors}))}. Rolled out, with encoders: {rolled_out}. Probe the "
            "same weights, on frames of the same tasks."
        )
    rows = []
    for camera, target, features in dict.fromkeys(read_out for task, read_out in errors if task in tasks):
        cells = []
        for task, encoders in tasks.items():
            of_task = errors.get((task, (camera, target, features)), {})
            both = [encoder for encoder in encoders if encoder in of_task]
            pairs = [of_task[one] for one in both], [rates[task][one][1] for one in both]
            cells.append(agreement(*pairs) if len(both) >= FEWEST else np.full(1, np.nan))
        known = [cell for cell in cells if not np.isnan(cell[0])]
        mean = np.mean(known, axis=0) if known else np.full(1, np.nan)
        rows.append([camera, target, features, *(say(cell) for cell in cells), say(mean)])
    counts = ", ".join(f"{task} {len(encoders)}" for task, encoders in tasks.items())
    return f"Encoders: {counts}.\n\n{to_markdown(['camera', 'target', 'read from', *tasks, 'mean'], rows)}"


def draw(
    path: Path, errors: dict[tuple[str, ReadOut], dict[str, Draws]], rates: dict[str, dict[str, tuple[str, Draws]]]
) -> None:
    """Draw success against error, one panel per task, with intervals both ways."""
    camera = next(read_out[0] for _, read_out in errors)
    shown = [task for task in rates if (task, (camera, *SHOWN)) in errors]
    figure = Figure(figsize=(3.2 * len(shown), 3.2), layout="constrained")
    for axis, task in zip(figure.subplots(1, len(shown), squeeze=False, sharey=True)[0], shown, strict=True):
        for encoder, (arm, rate) in rates[task].items():
            error = errors[task, (camera, *SHOWN)].get(encoder)
            if error is None:
                continue
            (x, *across), (y, *along) = interval(error), interval(100 * rate)
            axis.plot(across, [y, y], color="0.7", lw=1)
            axis.plot([x, x], along, color="0.7", lw=1)
            axis.plot(x, y, "o", color="#1f6feb")
            axis.annotate(arm, (x, y), textcoords="offset points", xytext=(5, 4), fontsize=8)
        axis.set(title=task, xlabel=f"{SHOWN[0]}, cm ({SHOWN[1]}, {camera})")
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel("success, %")
    figure.savefig(path, dpi=110)


@told_on_one_line("rank_by_probes")
def main() -> None:
    """Read the command line, compare, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("probes", type=Path, help="folder of compare_encoders.py")
    parser.add_argument("benchmark", type=Path, help="folder of run_benchmark.py")
    parser.add_argument("--policy", default="act", help="whose rollouts (default: act)")
    parser.add_argument("--condition", default=CLEAN, help="clean, or a shift of the benchmark (default: clean)")
    parser.add_argument("--picture", type=Path, help="file to draw success against error in")
    options = parser.parse_args()
    config = read_benchmark(options.benchmark)
    rates, errors = read_rates(config, options.policy, options.condition), read_errors(options.probes)
    print(f"{tabulate(errors, rates)}\n\n{READING}")
    if options.picture:
        draw(options.picture, errors, rates)


if __name__ == "__main__":
    main()
