"""The report's tables and sentences, the same for the page and for Markdown."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table as RichTable

from benchmark.estimates import Estimate, over_tasks
from benchmark.looks import Looks
from benchmark.results import Panel
from benchmark.settings import CLEAN, Benchmark

NONE = "–"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table of strings."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    @property
    def markdown(self) -> str:
        """The table in Markdown."""
        return f"**{self.title}**\n\n{to_markdown(self.columns, self.rows)}"

    def __rich__(self) -> RichTable:
        """The table as a terminal shows it."""
        shown = RichTable(title=self.title, title_justify="left")
        for name in self.columns:
            shown.add_column(name, overflow="fold")
        for row in self.rows:
            shown.add_row(*row)
        return shown


def to_markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lines of a table in Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [columns, ["---"] * len(columns), *rows])


def percent(found: Estimate | None) -> str:
    """A rate with its interval."""
    if found is None:
        return NONE
    return f"{100 * found.value:.0f} % ({100 * found.low:.0f} to {100 * found.high:.0f})"


def points(found: Estimate | None) -> str:
    """A difference of rates with its interval."""
    if found is None:
        return NONE
    value, low, high = (round(100 * one) for one in (found.value, found.low, found.high))  # whole, or -0 would show
    return f"{value:+d} ({low:+d} to {high:+d})"


def score_grids(panel: Panel, looks: Looks, reference: str) -> list[Grid]:
    """Two tables per condition, rates and how far episodes came, and one of what is kept under the shifts."""
    references = [name for name in dict.fromkeys((reference, "random")) if name in panel.cells]
    grids = []
    for condition, scores in panel.scores.items():
        rows = [
            [
                looks[arm].label,
                score.counts,
                score.per_seed,
                percent(score.rate),
                *(points(score.against.get(name)) for name in references),
                *(", ".join(f"{p:.2g}" for p in score.p_values.get(name, [])) or NONE for name in references[-1:]),
            ]
            for arm, score in scores.items()
        ]
        columns = ["arm", "successes", "by training seed", "rate, 95 %", *(f"less {name}" for name in references)]
        columns += [f"McNemar p against {name}, by seed" for name in references[-1:]]
        grids.append(Grid(title=f"{condition.capitalize()} scenes", columns=columns, rows=rows))
    for condition, scores in panel.scores.items():
        told = {looks[arm].label: score.ends for arm, score in scores.items() if score.ends}
        if told:
            columns = ["arm", *next(iter(told.values()))]
            rows = [[label, *map(str, ends.values())] for label, ends in told.items()]
            grids.append(Grid(title=f"How far episodes came, {condition} scenes", columns=columns, rows=rows))
    if panel.kept:
        rows = [[looks[arm].label] for arm in panel.cells]
        for row, arm in zip(rows, panel.cells, strict=True):
            for kept in panel.kept.values():
                row += [percent(kept[arm].share), points(kept[arm].less)]
        columns = ["arm"]
        for shift in panel.kept:
            columns += [f"{shift}: share of the clean rate that is kept, 95 %", f"less {reference}"]
        grids.append(Grid(title="Kept under shift", columns=columns, rows=rows))
    return grids


def overview(panels: Sequence[Panel], looks: Looks, reference: str) -> list[Grid]:
    """All tasks and arms at a glance: a table per condition, and one per shift of what is kept under it.

    Of several tasks, the differences to an arm, too, which stand in each task's own tables.
    """
    told = [panel for panel in panels if panel.scores]
    arms = [arm for arm in looks if any(arm in panel.cells for panel in told)]
    rates = {
        condition: [{arm: score.rate for arm, score in panel.scores[condition].items()} for panel in told]
        for condition in dict.fromkeys(name for panel in told for name in panel.scores)
    }
    shares = {
        shift: [{arm: kept.share for arm, kept in panel.kept[shift].items()} for panel in told]
        for shift in dict.fromkeys(name for panel in told for name in panel.kept)
    }
    titled = [(f"Success on {name} scenes, %, with 95 % intervals", rows, _bare) for name, rows in rates.items()]
    titled += [(f"Share of the clean rate that is kept, {name} shift, %", rows, _bare) for name, rows in shares.items()]
    if len(told) > 1:
        less = {
            name: [{arm: score.against.get(reference) for arm, score in panel.scores[name].items()} for panel in told]
            for name in rates
        }
        titled += [(f"Success less {reference}'s, {name} scenes, points", rows, points) for name, rows in less.items()]
    return [
        Grid(title=title, columns=["task, policy", *arms], rows=_with_means(told, rows, arms, show))
        for title, rows, show in titled
    ]


def _with_means(
    panels: Sequence[Panel],
    found: Sequence[Mapping[str, Estimate | None]],
    arms: Sequence[str],
    show: Callable[[Estimate | None], str],
) -> list[list[str]]:
    """One row per panel, and one per policy that has several tasks: the mean of the arms that all of them tell of."""
    rows = [
        [panel.name, *(show(estimates.get(arm)) for arm in arms)]
        for panel, estimates in zip(panels, found, strict=True)
    ]
    for policy in dict.fromkeys(panel.policy for panel in panels):
        here = [one for panel, one in zip(panels, found, strict=True) if panel.policy == policy]
        if len(here) > 1:
            columns = [[one.get(arm) for one in here] for arm in arms]
            means = [over_tasks([one for one in column if one]) if all(column) else None for column in columns]
            rows.append([f"mean of {len(here)} tasks, {policy}", *(show(mean) for mean in means)])
    return rows


def arms_grid(panels: Sequence[Panel], looks: Looks) -> Grid:
    """What each arm sees through: where its weights come from, and how much of the policy is trained."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for panel in panels:
        for arm, cells in panel.cells.items():
            found.setdefault((panel.policy, arm), []).extend(cell.facts for cell in cells)
    rows = []
    for (policy, arm), facts in found.items():
        weights = [one["weights"] or {} for one in facts]
        columns = [
            [str(one.get("name", NONE)) for one in weights],
            [(one["encoder"] or NONE)[:12] for one in facts],
            [str(one.get("licence", NONE)) for one in weights],
            [f"{one['trained_parameters']:,}" for one in facts],
        ]
        rows.append([f"{looks[arm].label}, {policy}", *("; ".join(dict.fromkeys(column)) for column in columns)])
    columns = ["arm, policy", "encoder", "sha256, by training seed and task", "licence", "weights that are trained"]
    return Grid(title="Arms", columns=columns, rows=rows)


def cost_grid(panels: Sequence[Panel], looks: Looks) -> Grid:
    """CPU seconds per cell of every arm, the mean over cells, and in total."""
    filled = [(arm, panel.policy, one) for panel in panels for arm, cells in panel.cells.items() for one in cells]
    parts = list(dict.fromkeys(part for *_, one in filled for part in one.facts["cpu_seconds"]))
    rows = []
    for arm, policy in dict.fromkeys((arm, policy) for arm, policy, _ in filled):
        costs = [one.facts["cpu_seconds"] for name, kind, one in filled if (name, kind) == (arm, policy)]
        means = [sum(cost.get(part, 0.0) for cost in costs) / len(costs) for part in parts]
        total = sum(sum(cost.values()) for cost in costs)
        rows.append(
            [f"{looks[arm].label}, {policy}", str(len(costs)), *(f"{mean:.0f}" for mean in means), f"{total:.0f}"]
        )
    total = sum(sum(one.facts["cpu_seconds"].values()) for *_, one in filled)
    rows.append(["all", str(len(filled)), *([""] * len(parts)), f"{total:.0f}"])
    columns = ["arm", "cells", *(f"{part}, per cell" for part in parts), "sum"]
    return Grid(title="CPU seconds", columns=columns, rows=rows)


def sentences(panel: Panel, looks: Looks, config: Benchmark) -> list[str]:
    """What the numbers of a panel allow to be said, and no more: a cause is named where arms differ in nothing else."""
    scores, first = panel.scores.get(CLEAN, {}), config.compared_with
    said = []
    if "blind" in scores and first in scores["blind"].against:
        cause = "" if first == "state" else "seeing"
        said.append(_compare(first, "a blind policy", _flip(scores["blind"].against[first]), cause))
    if first in scores and "random" in scores[first].against:
        alike = first == next(iter(config.arms)) and config.options_of(first) == config.options_of("random")
        cause = "pre-training" if alike else ""
        gain = scores[first].against["random"]
        said.append(_compare(first, looks["random"].label.lower(), gain, cause))
        if gain.low <= 0 <= gain.high and "blind" in scores and scores["blind"].against["random"].high < 0:
            said.append(
                "Random weights beat a blind policy as well: this task shows that the path from pixels to actions "
                "works, not what pre-training buys."
            )
    if "cnn" in scores and first in scores["cnn"].against:
        against = _flip(scores["cnn"].against[first])
        cause = "the frozen encoder" if config.train_encoder_of(first) == "frozen" else ""
        said.append(_compare(first, "a small CNN trained end to end", against, cause))
    for shift, kept in panel.kept.items():
        less = kept["cnn"].less if "cnn" in kept else None
        if less and not less.low <= 0 <= less.high:
            more, other = (first, "a small CNN") if less.value < 0 else ("A small CNN", first)
            size = _flip(less) if less.value < 0 else less
            said.append(
                f"{more} keeps a larger share of its rate than {other} under the {shift} shift: {points(size)}."
            )
    if "blind" in scores and scores["blind"].rate.low > 0.5:
        said.append("A blind policy solves most scenes: this task asks little of the eyes.")
    if "state" in scores and scores["state"].rate.high < 0.9:
        high = f"{100 * scores['state'].rate.high:.0f} %"
        said.append(
            f"Told the whole state, this policy solves at most {high}: what is missing is not in the eyes, "
            "but in demonstrations, training or policy."
        )
    return said


def _compare(first: str, other: str, found: Estimate, cause: str) -> str:
    if found.low > 0:
        return f"{first} beats {other} by {points(found)} points{cause and f': {cause} helps here'}."
    if found.high < 0:
        return f"{first} falls behind {other} by {points(found)} points{cause and f': {cause} hurts here'}."
    return f"{first} and {other} cannot be told apart here: {points(found)} points."


def _flip(found: Estimate) -> Estimate:
    return Estimate(value=-found.value, low=-found.high, high=-found.low)


def _bare(found: Estimate | None) -> str:
    return percent(found).replace(" %", "")
