"""The page's figures."""

import io
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmark.estimates import Estimate, over_tasks
from benchmark.looks import Looks
from benchmark.results import Panel

SUCCESS = "#2da44e"


def rates_svg(panel: Panel, looks: Looks) -> str:
    """Every arm's success rate: full dots without a shift, hollow ones with it."""
    arms = list(panel.cells)
    figure, axis = _begin(0.42 * len(arms) + 0.9)
    conditions = list(panel.scores)
    for row, arm in enumerate(reversed(arms)):
        for number, condition in enumerate(conditions):
            found = panel.scores[condition][arm].rate
            height = row + 0.15 - 0.3 * number / max(1, len(conditions) - 1) if len(conditions) > 1 else row
            _draw(axis, height, found, looks[arm].color, hollow=number > 0)
    _label(axis, [looks[arm].label for arm in arms], "success on held-out scenes, %", limits=(-2, 102))
    return _to_svg(figure)


def ends_svg(panel: Panel, looks: Looks) -> str:
    """Every arm's episodes as one bar per condition: successes, then failures by how far they came."""
    told = {condition: scores for condition, scores in panel.scores.items() if any(one.ends for one in scores.values())}
    arms = [arm for arm in panel.cells if all(scores[arm].ends for scores in told.values())]
    if not arms or not told:
        return ""
    figure = Figure(figsize=(8, 0.36 * len(arms) + 1.3), layout="constrained")
    axes = figure.subplots(1, len(told), sharey=True, squeeze=False)[0]
    for axis, (condition, scores) in zip(axes, told.items(), strict=True):
        _stack(axis, [scores[arm].ends for arm in reversed(arms)])
        axis.spines[["top", "right"]].set_visible(False)
        axis.set(title=f"{condition} scenes", xlabel="episodes, %", xlim=(0, 100))
    axes[0].set_yticks(range(len(arms)), [looks[arm].label for arm in reversed(arms)])
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=8)
    return _to_svg(figure)


def _stack(axis: Axes, rows: Sequence[Mapping[str, int]]) -> None:
    names = list(rows[0])
    failures = [str(0.35 + 0.5 * number / max(1, len(names) - 2)) for number in range(len(names) - 1)]  # greys
    for row, ends in enumerate(rows):
        left, total = 0.0, sum(ends.values())
        for (name, count), color in zip(ends.items(), [SUCCESS, *failures], strict=True):
            width = 100 * count / total
            axis.barh(row, width, left=left, height=0.7, color=color, label=None if row else name)
            left += width


def differences_svg(panels: Sequence[Panel], condition: str, arms: tuple[str, str]) -> str:
    """A forest: the paired difference of two arms on every task."""
    rows = [(one.name, one.scores[condition][arms[0]].against[arms[1]]) for one in panels]
    for policy in dict.fromkeys(one.policy for one in panels):
        here = [found for (_, found), one in zip(rows, panels, strict=False) if one.policy == policy]
        rows += [(f"mean of {len(here)} tasks, {policy}", over_tasks(here))] if len(here) > 1 else []
    figure, axis = _begin(0.34 * len(rows) + 0.9)
    axis.axvline(0, color="#5b6577", linewidth=1)
    for row, (_, found) in enumerate(reversed(rows)):
        _draw(axis, row, found, "#1f6feb", hollow=False)
    reach = 100 * max(0.2, *(max(abs(found.low), abs(found.high)) for _, found in rows)) + 4
    title = f"{arms[0]} less {arms[1]}, {condition} scenes, points"
    _label(axis, [name for name, _ in rows], title, limits=(-reach, reach))
    return _to_svg(figure)


def losses_svg(panel: Panel, looks: Looks) -> str:
    """Training losses of every cell."""
    figure, axis = _begin(3)
    for arm, cells in panel.cells.items():
        name, color = looks[arm]
        for number, one in enumerate(cells):
            steps, losses = zip(*one.facts["losses"], strict=True)
            label = None if number else name
            axis.plot(steps, losses, color=color, label=label, linewidth=1.2, marker="." if len(steps) == 1 else None)
    axis.set(xlabel="training step", ylabel="training loss", yscale="log")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=8)
    return _to_svg(figure)


def _begin(height: float) -> tuple[Figure, Axes]:
    """A figure of 8 inches by a height, with one pair of axes."""
    figure = Figure(figsize=(8, height), layout="tight")
    axis = figure.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis


def _to_svg(figure: Figure) -> str:
    """A figure as an element of a page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True)
    return buffer.getvalue().split("?>", 1)[1].split(">", 1)[1]


def _draw(axis: Axes, height: float, found: Estimate, color: str, *, hollow: bool) -> None:
    ends = [100 * found.low, 100 * found.high]
    axis.plot(ends, [height, height], color=color, linewidth=5, alpha=0.35, solid_capstyle="round")
    face = "white" if hollow else color
    axis.plot(100 * found.value, height, "o", color=color, markerfacecolor=face, markersize=7)


def _label(axis: Axes, names: Sequence[str], title: str, *, limits: tuple[float, float]) -> None:
    axis.set_yticks(range(len(names)), reversed(names))
    axis.set(xlim=limits, ylim=(-0.6, len(names) - 0.4), xlabel=title)
    axis.grid(axis="x", alpha=0.3)
