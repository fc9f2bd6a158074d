"""``pixio-geometry``: train geometry on a frozen encoder, measure it on held-out sets.

"depth" trains a head for one view; "views" a trunk for several, on such a head (--depth), whose errors it learns. A
killed run goes on where it stopped when the same command is given again.
"""

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import torch

from pixio_pretrain.geometry.baselines import PixelMean, table_plane
from pixio_pretrain.geometry.drift import DriftTask
from pixio_pretrain.geometry.evaluation import SHOWN, Measure, evaluate, write_tables
from pixio_pretrain.geometry.fitting import FitConfig, fit
from pixio_pretrain.geometry.mono import DepthTask
from pixio_pretrain.geometry.pairs import SHOWN as PAIRS_SHOWN
from pixio_pretrain.geometry.pairs import evaluate_scenes, measure_views
from pixio_pretrain.geometry.sets import RgbdSet, once_per_set, read_held_out
from pixio_pretrain.geometry.taps import Taps
from pixio_pretrain.geometry.views import CHANCES, ViewsTask
from pixio_pretrain.manual import meanings
from pixio_pretrain.precision import check_device
from pixio_robot.checkpoints import WEIGHTS, load_encoder
from pixio_robot.encoder import Encoder
from pixio_robot.errors import DataError, SettingError, told_on_one_line
from pixio_robot.geometry.depth import Coding, DepthModel, DepthSettings, load_depth
from pixio_robot.geometry.multiview import MultiViewModel
from pixio_robot.geometry.trunk import MultiViewSettings
from pixio_robot.hashes import file_sha256
from pixio_robot.machine import machine_name

RANDOM = "frozen random encoder"

_CODINGS = get_args(Coding)


def train_depth(
    data: str | Path,
    folder: str | Path,
    *,
    encoder_name: str = "shipped:pixio_vitt16",
    settings: DepthSettings | None = None,
    config: FitConfig | None = None,
    twin: bool = True,
) -> Path:
    """Train a depth head, and the same head on random features, and measure both beside all baselines.

    Args:
        data: A folder as ``scripts/render_rgbd.py`` makes it: "train", and sets in "held_out".
        folder: Comes to hold "model" (see ``load_depth``), "evaluation.md" and "evaluation.json", and a folder of
            checkpoints for each head. A killed run goes on where it stopped.
        encoder_name: What ``load_encoder`` reads.
        settings: The head's.
        config: Of training.
        twin: Whether to train the head on the frozen random encoder, too: what it reaches, the encoder did not give.

    Returns:
        The folder of the model.

    Raises:
        DataError: The sets are missing or unfinished.
        CheckpointError: The folder holds another run.
        UnknownNameError: No such encoder.
        SettingError: Settings that cannot be, or a device that is not here.
    """
    data, folder = Path(data).expanduser(), Path(folder).expanduser()
    settings, config = settings or DepthSettings(), config or FitConfig()
    check_device(config.device)
    train, held_out = RgbdSet.read(data / "train"), read_held_out(data)
    encoder = load_encoder(encoder_name, device=config.device)
    mean = PixelMean.fit(train)
    methods: dict[str, Measure] = {"constant": mean.constant, "pixel mean": mean.pixels, "table plane": table_plane}
    if twin:
        random = encoder.redrawn(config.seed).to(config.device)
        model, _ = _train(random, settings, config, train, folder / "random")
        methods[f"{settings.head} on {RANDOM}"] = _measure(model, _taps_of(model), posed=True)
    model, spent = _train(encoder, settings, config, train, folder / "head")
    taps_of = _taps_of(model)
    if settings.rays and settings.coding != "support":
        methods[f"{settings.head} on {encoder_name}, pose withheld"] = _measure(model, taps_of, posed=False)
    methods[f"{settings.head} on {encoder_name}"] = _measure(model, taps_of, posed=True)  # last: less all others
    model.facts = _facts(train, config, spent)
    model.save_pretrained(folder / "model")
    write_tables(folder, (evaluate(held_out, methods), SHOWN), **model.facts, encoder=encoder.fingerprint)
    return folder / "model"


def train_views(
    data: str | Path,
    folder: str | Path,
    *,
    encoder_name: str = "shipped:pixio_vitt16",
    settings: MultiViewSettings | None = None,
    config: FitConfig | None = None,
    depth: str | Path | None = None,
    drift_steps: int = 4000,
    twin: bool = False,
) -> Path:
    """Train the multi-view model, and measure it beside the table's plane and a depth head with known cameras.

    Args:
        data: As for ``train_depth``.
        folder: Comes to hold "model" (see ``load_multiview``), the tables, and a folder of checkpoints.
        encoder_name: What ``load_encoder`` reads.
        settings: The trunk's.
        config: Of training; a sample is a moment, seen by two cameras.
        depth: Folder of a depth head on the same encoder. It measures each view by itself, and the trunk learns what
            it gets wrong; the tables have it by itself, too. Only with it, drifted poses can be corrected.
        drift_steps: Steps of the training that does, which comes first; its other settings are those of ``config``.
        twin: Whether to train the same trunk with another scene in place of the second view, too: what it reaches, the
            second view does not give.

    Returns:
        The folder of the model.

    Raises:
        DataError: The sets are missing or unfinished, or have one view only.
        CheckpointError: The folder holds another run, or ``depth`` is on another encoder.
        UnknownNameError: No such encoder.
        SettingError: Settings that cannot be, or a device that is not here.
    """
    data, folder = Path(data).expanduser(), Path(folder).expanduser()
    settings, config = settings or MultiViewSettings(), config or FitConfig()
    check_device(config.device)
    train, held_out = RgbdSet.read(data / "train"), read_held_out(data)
    for one in (train, *held_out.values()):
        if one.views < 2:
            raise DataError(f"{one.folder} shows each moment from one camera; several views begin with two.")
    encoder = load_encoder(encoder_name, device=config.device)
    methods: dict[str, Measure] = {"table plane": table_plane}
    if depth is None and settings.alone is not None:
        raise SettingError("settings.alone describes a depth head, but there is none: name its folder as depth.")
    depth_head = None if depth is None else load_depth(depth, encoder=encoder)

    def drawn() -> MultiViewModel:
        torch.manual_seed(config.seed)
        return MultiViewModel(encoder, settings, depth_head=depth_head)

    model = drawn()
    taps, taps_of = Taps(encoder, train, model.taps, precision=config.precision), _taps_of(model)
    head = None if depth is None else file_sha256(Path(depth).expanduser() / WEIGHTS)
    trunk = dataclasses.asdict(model.settings) | {"alone_sha256": head}
    if twin:
        control = drawn()
        identity = _identity(encoder, train, trunk=trunk, learns={"twin": True})
        fit(ViewsTask(control, train, taps, twin=True), config, folder / "twin", identity=identity)
        controls = once_per_set(lambda frames: ViewsTask(control, frames, taps_of(frames), twin=True))
        methods["a view of another scene beside it"] = measure_views(controls, "all")
    drift: dict[str, Any] = {}
    if depth_head is not None:
        methods["one view and calibration"] = _measure(depth_head, taps_of, posed=True)
        longer = dataclasses.replace(config, steps=drift_steps)
        identity = _identity(encoder, train, trunk=trunk)
        spent = fit(DriftTask(model, train, taps), longer, folder / "drift", identity=identity)
        drift = {"steps": drift_steps, "cpu_s": round(spent)}
    identity = _identity(encoder, train, trunk=trunk, learns={"chances": CHANCES}, drift={"steps": drift_steps})
    spent = fit(ViewsTask(model, train, taps), config, folder / "trunk", identity=identity)
    model.facts = _facts(train, config, spent) | {"drift": drift}
    model.save_pretrained(folder / "model")
    task_of = once_per_set(lambda frames: ViewsTask(model, frames, taps_of(frames)))
    methods["two views and calibration"] = measure_views(task_of, "all")
    tables = (evaluate(held_out, methods), SHOWN), (evaluate_scenes(held_out, task_of), PAIRS_SHOWN)
    write_tables(folder, *tables, **model.facts, encoder=encoder.fingerprint)
    return folder / "model"


def _train(
    encoder: Encoder, settings: DepthSettings, config: FitConfig, train: RgbdSet, folder: Path
) -> tuple[DepthModel, float]:
    torch.manual_seed(config.seed)
    model = DepthModel(encoder, settings)
    model.start_at(PixelMean.fit(train).overall, focal=float(train.intrinsics[..., 0, 0].median()))
    task = DepthTask(model, train, Taps(encoder, train, model.taps, precision=config.precision))
    identity = _identity(encoder, train, head=dataclasses.asdict(settings))
    return model, fit(task, config, folder, identity=identity)


def _identity(encoder: Encoder, train: RgbdSet, **settings: dict[str, Any]) -> dict[str, Any]:
    """What decides a result, by dotted name, in JSON's types."""
    parts = settings | {"data": _data(train)}
    named = {f"{part}.{key}": value for part, values in parts.items() for key, value in values.items()}
    return json.loads(json.dumps({"encoder": encoder.fingerprint, **named}))


def _facts(train: RgbdSet, config: FitConfig, spent: float) -> dict[str, Any]:
    """What a model's folder says of its training."""
    fitted = {"fit": dataclasses.asdict(config), "cpu_s": round(spent), "threads": torch.get_num_threads()}
    fitted |= {"machine": machine_name(config.device), "date": datetime.now(UTC).date().isoformat()}
    return {"data": _data(train), **fitted}


def _data(train: RgbdSet) -> dict[str, Any]:
    return {key: value for key, value in train.facts.items() if key != "complete"}


def _taps_of(model: DepthModel | MultiViewModel) -> Callable[[RgbdSet], Taps]:
    """What the model's encoder says of a set, asked once."""
    return once_per_set(lambda frames: Taps(model.encoder, frames, model.taps))


def _measure(model: DepthModel, taps_of: Callable[[RgbdSet], Taps], *, posed: bool) -> Measure:
    task_of = once_per_set(lambda frames: DepthTask(model, frames, taps_of(frames)))
    return lambda frames, rows: task_of(frames).predict(rows, posed=posed).depth


@told_on_one_line("pixio-geometry")
def main(words: Sequence[str] | None = None) -> None:
    """Read the command line, train, print the table."""
    parser = argparse.ArgumentParser(
        prog="pixio-geometry", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    style = argparse.ArgumentDefaultsHelpFormatter
    depth = commands.add_parser("depth", help="a depth head for one view", formatter_class=style)
    views = commands.add_parser("views", help="the trunk for several views", formatter_class=style)
    for command in (depth, views):
        command.add_argument("data", type=Path, help="what scripts/render_rgbd.py made: train/, held_out/*/")
        command.add_argument("folder", type=Path, help="where checkpoints, model and table go")
        command.add_argument("--encoder", default="shipped:pixio_vitt16", help="anything that load_encoder reads")
        command.add_argument("--head", default="tiny", help="DPT head: tiny, base, paper; for depth, linear, too")
        command.add_argument("--detail", action="store_true", help="see the picture, too, beside tokens: sharper edges")
        for field in dataclasses.fields(FitConfig):
            flag = f"--{field.name.replace('_', '-')}"
            command.add_argument(
                flag, type=type(field.default), default=field.default, help=meanings(FitConfig)[field.name]
            )
    depth.add_argument("--coding", default="canonical", help="what the head's number means: " + ", ".join(_CODINGS))
    depth.add_argument("--rays", action="store_true", help="tell the head each patch's ray in the base frame")
    depth.add_argument("--max-depth", type=float, default=4.0, help="metres, for sigmoid and support")
    depth.add_argument("--no-twin", action="store_true", help="leave the frozen random encoder out of the table")
    planes = "metres; heights of what things stand on in the base frame, such as table and floor"
    depth.add_argument("--support-heights", type=float, nargs="+", default=[0.0], help=f"{planes}, for support")
    views.add_argument(
        "--support-heights", type=float, nargs="+", default=[], help=f"{planes}; with --depth, its own are taken"
    )
    views.add_argument("--depth", type=Path, help="folder of a depth head, which several views then improve on")
    views.add_argument(
        "--twin", action="store_true", help="train it with another scene in place of the second view, too, as a control"
    )
    views.add_argument("--drift-steps", type=int, default=4000, help="with --depth: steps of learning to find drift")
    args = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = FitConfig(**{field.name: getattr(args, field.name) for field in dataclasses.fields(FitConfig)})
    shared: dict[str, Any] = {"encoder_name": args.encoder, "config": config}
    if args.command == "depth":
        head = DepthSettings(
            head=args.head,
            coding=args.coding,
            rays=args.rays,
            detail=args.detail,
            max_depth=args.max_depth,
            support_heights=tuple(args.support_heights),
        )
        train_depth(args.data, args.folder, settings=head, twin=not args.no_twin, **shared)
    else:
        trunk = MultiViewSettings(head=args.head, support_heights=tuple(args.support_heights), detail=args.detail)
        train_views(
            args.data,
            args.folder,
            settings=trunk,
            depth=args.depth,
            drift_steps=args.drift_steps,
            twin=args.twin,
            **shared,
        )
    sys.stdout.write((args.folder / "evaluation.md").read_text())
