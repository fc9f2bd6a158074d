#!/usr/bin/env python
r"""Compare frozen encoders by what a linear read-out finds in them: gripper, object and depth, on frames never seen.

The frames come with their exact answers and are of scenes that no encoder was trained on (a first seed beyond those of
the training set):

    scripts/render_frames.py outputs/probe --truth --tasks pick-place door-open drawer-open hammer --shift none \
        --first-seed 100000 --episodes-per-task 500 --frames-per-episode 2 --stride 20 50

An arm is a name and its encoders, one per training seed; a run's folder stands for the encoder in it:

    scripts/compare_encoders.py outputs/probe --folder outputs/encoders \
        pixio=outputs/arms/pixio-0,outputs/arms/pixio-1 mae=outputs/arms/mae-0,outputs/arms/mae-1

NAME@SIDE=PATH shows that arm the frames at SIDE pixels, rather than at the size that its encoder was trained at.
Beside the arms stand the same sizes with random weights, as often as they were trained (or --draws), the bare pixels,
the places of 64 colours, 128 keypoints of the descriptors that ship, each thing's exact place in the picture (what is
left for more scenes or cameras, however well an encoder sees), and the mean of the training answers. The folder comes
to hold records (one JSON object per line), predictions, pictures and results.md, whose tables are computed from the
records alone. An encoder that has been measured is not measured again, so a killed comparison continues, and arms can
be added.
"""

import argparse
import hashlib
import json
import shlex
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encoder_pictures import draw_depth, draw_features, draw_positions, draw_scaling
from tqdm import tqdm

from pixio_pretrain import probe
from pixio_pretrain.data import Frames, open_frames, split_episodes
from pixio_pretrain.probe.table import NONE
from pixio_robot import Encoder, EncoderSpec, load_encoder
from pixio_robot.drafts import write_whole
from pixio_robot.errors import DataError, SettingError, told_on_one_line
from pixio_robot.machine import machine_name

PIXELS = "pixels"
TOLD = {"colours": probe.color_places, "keypoints": probe.keypoint_places, "exact place": probe.exact_places}
TAKEN = (PIXELS, *TOLD, probe.BASELINE)
"""Arms that are always there."""

TRAINING = ("steps", "batch_size", "seed")
"""Settings of a run that the table of encoders tells."""

SCALED = "fine grid"
"""What the picture of errors against images seen reads positions from."""

READING = (
    "Positions: mean distance from the truth before the camera, read by ridge regression from a grid of averaged "
    "patches, for each task by itself, then averaged over tasks. Depth: a correction of the mean map, read from each "
    "patch; per frame, without alignment, less the sky. Intervals speak of held-out episodes and of encoders, not of "
    "other frames to fit to."
)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One encoder of an arm, or a baseline without one."""

    arm: str
    seed: int
    look: probe.Look | None
    encoder: str | None = None
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def stem(self) -> str:
        """The name of its files."""
        return file_stem(self.arm, self.seed)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What every candidate is asked."""

    frames: Frames
    truth: probe.Truth
    train: np.ndarray
    held_out: np.ndarray
    episodes: int | None
    grid: int
    most_depth: int

    @property
    def digest(self) -> str:
        """Hash of frames, answers, split and sizes."""
        facts = [self.frames.describe(), len(self.held_out), self.grid, self.most_depth]
        facts += [self.episodes] if self.episodes else []
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
        for array in (self.frames.episodes, self.held_out, *self.truth.world.values()):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def few(frames: Frames, rows: np.ndarray, count: int) -> np.ndarray:
    """Keep those of some rows that belong to the first episodes of each task, so many of them.

    Raises:
        DataError: There are fewer.
    """
    episodes = frames.episodes[rows]
    tasks = np.zeros(len(rows), int) if frames.tasks is None else frames.tasks[rows]
    by_task = [np.unique(episodes[tasks == task]) for task in np.unique(tasks)]
    if not 1 <= count <= (most := min(map(len, by_task))):
        raise DataError(f"--episodes {count}: there are {most} to learn from in the task that has fewest.")
    return rows[np.isin(episodes, np.concatenate([one[:count] for one in by_task]))]


def file_stem(arm: str, seed: int) -> str:
    """The name of the files of an arm's encoder."""
    return f"{arm.replace(' ', '-')}-{seed}"


def parse_arms(words: list[str]) -> dict[str, list[Path]]:
    """Read NAME=PATH[,PATH...], where NAME may end in @SIDE."""
    arms: dict[str, list[Path]] = {}
    for word in words:
        name, _, paths = word.partition("=")
        if not name or not paths or name in arms or "/" in name or name in TAKEN:
            raise SettingError(
                f"{word!r}: an arm is NAME=PATH or NAME=PATH,PATH,PATH. Each name is given once, has no slash, and is "
                f"none of {', '.join(TAKEN)}, which are there anyway."
            )
        _, at, side = name.partition("@")
        if at and not side.isdecimal():
            raise SettingError(
                f"{word!r}: after the @ of a name stands a size in pixels, such as {name.split('@')[0]}@192."
            )
        arms[name] = [Path(path).expanduser() for path in paths.split(",")]
    return arms


def list_candidates(arms: dict[str, list[Path]], options: argparse.Namespace) -> Iterator[Candidate]:
    """Give the arms, then random weights of each of their sizes, then what needs no encoder."""
    sizes: dict[EncoderSpec, tuple[Encoder, int]] = {}
    for arm, paths in arms.items():
        _, _, side = arm.partition("@")
        for seed, path in enumerate(paths):
            encoder = load_encoder(path, device=options.device)
            sizes[encoder.spec] = encoder, max(len(paths), options.draws, sizes.get(encoder.spec, (encoder, 0))[1])
            settings = encoder.provenance.get("settings", {})
            facts = {"name": encoder.provenance.get("name")} | {key: settings.get(key) for key in TRAINING}
            yield candidate(arm, seed, encoder, facts, options, side=int(side) if side else None)
    for spec, (like, count) in sizes.items():
        for seed in range(count):
            encoder = like.redrawn(seed).to(options.device)
            facts = {"weights": encoder.provenance["weights"]}
            yield candidate(f"random {tell_apart(spec, sizes)}", seed, encoder, facts, options)
    yield Candidate(arm=PIXELS, seed=0, look=probe.PIXELS)
    yield from (Candidate(arm=name, seed=0, look=None) for name in TOLD)
    yield Candidate(arm=probe.BASELINE, seed=0, look=probe.NOTHING)


def tell_apart(spec: EncoderSpec, specs: Iterable[EncoderSpec]) -> str:
    """Name an encoder's sizes: family, width and depth, and what else differs among those that share them."""
    alike = [one for one in specs if (one.family, one.width, one.depth) == (spec.family, spec.width, spec.depth)]
    rest = [name for name in asdict(spec) if len({getattr(one, name) for one in alike}) > 1]
    return " ".join([f"{spec.family} {spec.width}x{spec.depth}", *(f"{name}={getattr(spec, name)}" for name in rest)])


def candidate(
    arm: str,
    seed: int,
    encoder: Encoder,
    training: dict[str, Any],
    options: argparse.Namespace,
    *,
    side: int | None = None,
) -> Candidate:
    """Look through an encoder."""
    look = probe.Look.through(encoder, grid=options.grid, side=side)
    return Candidate(arm=arm, seed=seed, look=look, encoder=encoder.fingerprint, training=training)


def measure(candidate: Candidate, trial: Trial, folder: Path) -> list[probe.ProbeRecord]:
    """Measure a candidate, unless it has been; its records are written last.

    Raises:
        DataError: The folder has records of its name, for another encoder or other frames.
    """
    path = folder / "records" / f"{candidate.stem}.jsonl"
    if path.exists():
        records = probe.read_records(path)
        if {(record.encoder, record.store) for record in records} != {(candidate.encoder, trial.digest)}:
            raise DataError(f"{path} is of another encoder or other frames. Choose another folder, or remove the file.")
        return records
    asked = trial.frames, trial.truth, trial.train, trial.held_out
    if candidate.look:
        found = probe.probe_geometry(candidate.look, *asked, most_depth=trial.most_depth)
    else:
        found = probe.probe_told(TOLD[candidate.arm], *asked)
    facts = {"arm": candidate.arm, "seed": candidate.seed, "encoder": candidate.encoder, "store": trial.digest}
    records = [
        probe.ProbeRecord(**facts, training=candidate.training, measurement=measurement)
        for measurement in found.measurements
    ]
    for part in ("records", "predictions"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "predictions" / f"{candidate.stem}.npz", **found.predictions)  # pyright: ignore[reportArgumentType]
    probe.write_records(path, records)
    return records


def write_results(folder: Path, trial: Trial, records: list[probe.ProbeRecord], options: argparse.Namespace) -> None:
    """Write tables and pictures."""
    comparison = probe.Comparison(records)
    files = {record.arm: folder / "predictions" / f"{file_stem(record.arm, 0)}.npz" for record in records}
    predictions = {arm: dict(np.load(file)) for arm, file in files.items()}
    training = {(record.arm, record.seed): (record.encoder, record.training) for record in records}
    pictures = []
    for camera in trial.truth.cameras:
        draw_depth(folder / f"depth_{camera}.png", trial.frames, trial.truth, camera, predictions)
        draw_positions(
            folder / f"positions_{camera}.png", trial.frames, trial.truth, camera, trial.held_out, predictions
        )
        draw_features(folder / f"features_{camera}.png", trial.frames, camera, predictions)
        drawn = {kind: f"{kind.lower()}_{camera}.png" for kind in ("Depth", "Positions", "Features")}
        pictures += [f"![{kind}]({name})" for kind, name in drawn.items() if (folder / name).is_file()]
    views = {
        arm: facts["steps"] * facts["batch_size"] for (arm, _), (_, facts) in training.items() if facts.get("steps")
    }
    if len(set(views.values())) > 1:
        draw_scaling(folder / "scaling.png", comparison, views, SCALED)
        pictures.append(f"![Errors against images seen, read from the {SCALED}](scaling.png)")
    rows = [
        f"| {arm}, {seed} | {(weights or NONE)[:12]} | {', '.join(f'{key} {value}' for key, value in facts.items())} |"
        for (arm, seed), (weights, facts) in training.items()
    ]
    parts = [
        "# Encoders compared by linear probes",
        f"`{shlex.join(['scripts/compare_encoders.py', *sys.argv[1:]])}`",
        f"{datetime.now(UTC).date().isoformat()}, {machine_name(options.device)}, torch {torch.__version__}.",
        f"Learned from {len(trial.train)} frames, measured on {len(trial.held_out)} of other episodes. {READING}",
        f"Grid of averaged patches: {options.grid} x {options.grid}.",
        probe.to_markdown(comparison),
        *pictures,
        "\n".join(["| encoder | weights | training |", "| --- | --- | --- |", *rows]),
    ]
    write_whole(folder / "results.md", "\n\n".join(part.strip() for part in parts) + "\n")


@told_on_one_line("compare_encoders")
def main() -> None:
    """Read the command line and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path, help="frames with their answers (render_frames.py --truth)")
    parser.add_argument(
        "arms", nargs="+", metavar="NAME[@SIDE]=PATH[,PATH...]", help="an arm and its encoders, one per seed"
    )
    parser.add_argument("--folder", type=Path, default=Path("outputs/encoders"), help="where everything goes")
    parser.add_argument(
        "--held-out", type=float, default=0.25, help="share of the episodes to measure on (default: 0.25)"
    )
    parser.add_argument(
        "--episodes", type=int, help="episodes of each task to learn from, as of so many demonstrations (default: all)"
    )
    parser.add_argument(
        "--grid", type=int, default=4, help="side of the grid that positions are read from (default: 4)"
    )
    parser.add_argument(
        "--draws",
        type=int,
        default=1,
        help="draw random weights at least so often, as a benchmark of so many training seeds does (default: 1)",
    )
    parser.add_argument("--depth-frames", type=int, default=1000, help="frames to learn depth from (default: 1000)")
    parser.add_argument("--device", default="cpu", help="where encoders run (default: cpu)")
    parser.add_argument("--threads", type=int, default=0, help="threads of PyTorch; 0 leaves its own choice")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    arms, frames = parse_arms(options.arms), open_frames(options.store)
    train, held_out = split_episodes(frames.episodes, options.held_out)
    if options.episodes is not None:
        train = few(frames, train, options.episodes)
    truth = probe.Truth.read(options.store)
    sizes = {"episodes": options.episodes, "grid": options.grid, "most_depth": options.depth_frames}
    trial = Trial(frames=frames, truth=truth, train=train, held_out=held_out, **sizes)
    records, candidates = [], list(list_candidates(arms, options))  # what cannot be read is found before all work
    for one in tqdm(candidates, desc="measure", unit="encoder"):
        records += measure(one, trial, options.folder)
    write_results(options.folder, trial, records, options)
    print(options.folder / "results.md")


if __name__ == "__main__":
    main()
