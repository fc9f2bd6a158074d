"""The report of a folder: ``report.html``, one self-contained page, and ``results.md``, its tables."""

import base64
import json
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import rich

from benchmark.arms import alike_where
from benchmark.cells import PATCHES, PRETRAINING, count_done, plan_cells
from benchmark.figures import differences_svg, ends_svg, losses_svg, rates_svg
from benchmark.looks import Looks, find_looks
from benchmark.results import FilledCell, Panel, make_panels
from benchmark.settings import CLEAN, CONTROLS, Benchmark, counted, task_name
from benchmark.tables import Grid, arms_grid, cost_grid, overview, score_grids, sentences
from pixio_robot.drafts import write_whole

METHOD = (
    "The last weights of every training are measured, never the best of several. All arms play the same held-out "
    "scenes, and none of them, nor any look of a shifted scene, was there when policies were trained; what an encoder "
    "has seen, its card says. With several training seeds, intervals answer for other seeds and other scenes (crossed "
    "analysis of variance); with one, for other scenes."
)


def write_report(config: Benchmark, *, command: str) -> Path | None:
    """Write the report of all cells that are done, and print its first tables.

    Returns:
        The page, or None if no cell is done.

    Raises:
        DataError: A line of some records is no record.
    """
    cells, folder = plan_cells(config), Path(config.folder)
    panels = make_panels(config, cells)
    if not panels:
        return None
    looks = find_looks(config)
    filled = [one for panel in panels for group in panel.cells.values() for one in group]
    facts: dict[str, Any] = {
        "title": f"Benchmark: {config.tier}",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": "; ".join(sorted({one.facts["machine"] for one in filled})),
        "command": command,
        "note": config.note,
        "method": METHOD,
        "warnings": _warnings(config, filled, done=count_done(folder, cells), planned=len(cells)),
        "overview": overview(panels, looks, config.compared_with),
        "arms": arms_grid(panels, looks),
        "cost": cost_grid(panels, looks),
        "versions": _versions(filled),
    }
    sections = [
        {
            "name": panel.name,
            "text": panel.task.description,
            "sentences": sentences(panel, looks, config),
            "notes": panel.notes,
            "scenes": panel.scenes,
            "shifted": bool(panel.kept),
            "grids": score_grids(panel, looks, config.compared_with),
        }
        for panel in panels
    ]
    pictures = [_pictures(panel, looks) for panel in panels]
    page = folder / "report.html"
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    templates = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    html = templates.get_template("report.html.jinja").render(
        sections=[section | shown for section, shown in zip(sections, pictures, strict=True)],
        forests=_forests(panels, config),
        pretraining=_pretraining(panels, looks),
        colors=dict(looks.values()),
        settings=json.dumps(config.identity, indent=2),
        **facts,
    )
    write_whole(page, html)
    write_whole(folder / "results.md", _markdown(facts, sections))
    rich.print(*facts["overview"], sep="\n")
    return page


def _warnings(config: Benchmark, filled: Sequence[FilledCell], *, done: int, planned: int) -> list[str]:
    """What a reader has to know before the numbers."""
    found = [
        f"The control arm {name!r} is off: nothing says {control.answers}."
        for name, control in CONTROLS.items()
        if name in config.without
    ]
    if done < planned:
        found.append(f"Unfinished: {done} of {planned} cells are done.")
    if len(config.seeds) == 1:
        found.append("One training seed: no interval here answers for the luck of training.")
    if len(config.seeds) == 2:
        found.append(
            "Two training seeds: where trainings differ much, a 95 % interval holds the truth 90 % of the time."
        )
    for arm, source in config.arms.items():
        weights: defaultdict[tuple[object, ...], set[str]] = defaultdict(set)
        for one in filled:
            if one.cell.arm == arm:
                weights[alike_where(source, task_name(one.cell.task), one.cell.seed)].add(one.facts["encoder"])
        most = max(map(len, weights.values()), default=0)
        if most > 1:
            found.append(f"The arm {arm!r} has cells of {most} different weights: its source changed in between.")
    recorded: defaultdict[str, set[str]] = defaultdict(set)
    for one in filled:
        recorded[task_name(one.cell.task)].add(one.facts["demonstrations"]["sha256"])
    for task, recordings in recorded.items():
        if len(recordings) > 1:
            found.append(
                f"Cells of {task} were trained on {len(recordings)} recordings of its demonstrations, which differ at "
                "least in their last bits: these arms differ in more than their eyes."
            )
    resumed = sum(bool(one.facts["taken_up"]) for one in filled)
    if resumed:
        found.append(f"Taken up after a kill: {counted(resumed, 'cell')}. What was spent before is not in the cost.")
    return found


def _versions(filled: Sequence[FilledCell]) -> list[str]:
    """Versions of the simulators, from the records; several where cells were filled in with several."""
    seen = {
        (record.suite, json.dumps(record.versions, sort_keys=True))
        for one in filled
        for records in one.records.values()
        for record in records
    }
    return [
        f"{suite}: {', '.join(f'{name} {number}' for name, number in json.loads(versions).items())}"
        for suite, versions in sorted(seen)
    ]


def _forests(panels: Sequence[Panel], config: Benchmark) -> list[str]:
    """Paired differences of one arm to the random one, and of other encoders and the CNN to that arm."""
    drawn, one = [], config.compared_with
    pairs = [(one, "random"), *((arm, one) for arm in (*config.arms, "cnn"))]
    for pair in (pair for pair in pairs if len({*pair}) == 2):
        for condition in config.conditions:
            able = [panel for panel in panels if condition in panel.scores and {*pair} <= panel.cells.keys()]
            drawn += [differences_svg(able, condition, pair)] if able else []
    return drawn


def _pictures(panel: Panel, looks: Looks) -> dict[str, Any]:
    """Figures, films and patches of a panel; films and patches are those of the first training seed."""
    films = [
        {
            "data": _to_base64(path.read_bytes()),
            "color": looks[arm].color,
            "caption": f"{looks[arm].label}, {condition}: scene {record.env_seed}, "
            f"{'success' if record.success else 'failure'} after {record.steps} steps",
        }
        for arm, cells in panel.cells.items()
        for condition in panel.scores or [CLEAN]
        for record in cells[0].records[condition]
        if record.video and (path := cells[0].home / "videos" / condition / Path(record.video).name).is_file()
    ]
    patches = [
        {"data": _to_base64(path.read_bytes()), "color": looks[arm].color, "caption": looks[arm].label}
        for arm, cells in panel.cells.items()
        if (path := cells[0].home / PATCHES).is_file()
    ]
    drawn = {"rates_svg": rates_svg(panel, looks) if panel.scores else "", "ends_svg": ends_svg(panel, looks)}
    return drawn | {"losses_svg": losses_svg(panel, looks), "films": films, "patches": patches}


def _pretraining(panels: Sequence[Panel], looks: Looks) -> list[dict[str, str]]:
    """What the pre-training of each arm left to look at, once per arm."""
    files = {arm: cells[0].home / PRETRAINING for panel in reversed(panels) for arm, cells in panel.cells.items()}
    return [
        {"data": _to_base64(files[arm].read_bytes()), "color": look.color, "caption": look.label}
        for arm, look in looks.items()
        if arm in files and files[arm].is_file()
    ]


def _to_base64(data: bytes) -> str:
    """Bytes as a data URI carries them."""
    return base64.b64encode(data).decode("ascii")


def _markdown(facts: dict[str, Any], sections: Sequence[dict[str, Any]]) -> str:
    """The tables as Markdown."""
    grids: list[Grid] = facts["overview"]
    parts = [f"# {facts['title']}", f"`{facts['command']}`", f"{facts['date']}, {facts['machine']}."]
    parts += [facts["note"], facts["method"], *(f"- {one}" for one in facts["warnings"])]
    parts += [grid.markdown for grid in grids]
    for section in sections:
        parts += [f"## {section['name']}", f"{section['text']}. {section['scenes']} scenes."]
        parts += ["\n".join(f"- {one}" for one in [*section["sentences"], *section["notes"]])]
        parts += [grid.markdown for grid in section["grids"]]
    parts += [
        "## Arms, cost, versions",
        facts["arms"].markdown,
        facts["cost"].markdown,
        "\n".join(f"- {one}" for one in facts["versions"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
