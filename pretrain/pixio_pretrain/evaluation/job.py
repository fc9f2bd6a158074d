"""One evaluation: an encoder, a data set, a task; what it found, as a record that tables are computed from."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import MISSING
from PIL import Image

from pixio_pretrain.checkpoint import check_identity
from pixio_pretrain.evaluation.encoders import open_encoder
from pixio_pretrain.precision import autocast, check_device, resolve
from pixio_robot.checkpoints import encoder_folder
from pixio_robot.drafts import draft_of, write_whole
from pixio_robot.encoder import ENCODERS, Encoder
from pixio_robot.errors import DataError, SettingError
from pixio_robot.machine import machine_name
from pixio_robot.runs import alone

PACKAGES = ("torch", "torchvision", "transformers", "numpy", "pixio-robot", "pixio-pretrain")
PYRAMID = "fpn.safetensors"
"""What pre-training writes beside an encoder that it trained with a pyramid."""

Values = NDArray[np.float64]


@dataclass(kw_only=True)
class EvalConfig:
    """One evaluation.

    Attributes:
        encoder: What ``load_encoder`` reads; "random:NAME" for a row of ``ENCODERS``, or a ResNet (resnet18, resnet50),
            with weights of this seed; "pixels" for the bare image, "constant" for nothing at all.
        data: The data set's folder.
        folder: Where results go: a folder per task and encoder. An evaluation that was stopped goes on there.
        seed: Fixes weights, order and chance.
        precision: "bf16" (autocast; weights stay float32), "fp32", or "auto": bf16 where the device is fast at it.
        device: "cpu", "cuda", ...
        threads: CPU threads of PyTorch; 0 leaves its own choice.
        workers: Processes that read and cut images; 0 does it in the main one. Changes no result.
        batch_size: Images of one pass of the encoder where nothing is trained. Changes no result but by rounding.
        official_counts: Refuse a data set whose parts have other numbers of images than the published ones.
        task: See ``TASKS``.
    """

    encoder: str = MISSING
    data: str = MISSING
    folder: str = "outputs/eval"
    seed: int = 0
    precision: str = "auto"
    device: str = "cpu"
    threads: int = 0
    workers: int = 0
    batch_size: int = 64
    official_counts: bool = True
    task: Any = MISSING

    def __post_init__(self) -> None:
        self.precision = resolve(self.precision, self.device)
        if self.batch_size < 1 or min(self.threads, self.workers) < 0:
            raise SettingError("batch_size must be at least 1; threads and workers must not be negative.")


@dataclass(kw_only=True)
class Outcome:
    """What an evaluation found.

    Attributes:
        metrics: By name.
        images: What metrics are computed from, image by image, by metric: see ``resampled``. A metric that is no sum
            over images has none, and no interval.
        data: What the parts of the data set say of themselves.
        facts: Whatever else the record should say.
        pictures: Predictions to look at, by file name.
    """

    metrics: dict[str, float]
    images: dict[str, Values]
    data: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, Image.Image] = field(default_factory=dict)


def means(images: Mapping[str, Values]) -> dict[str, float]:
    """Average metrics over their images [n]."""
    return {name: float(values.mean()) for name, values in images.items()}


class TaskConfig(Protocol):
    """Settings of a task, which know how to do it."""

    name: str

    @property
    def title(self) -> str:
        """Task and data set, as a folder's name."""
        ...

    def run(self, job: "Job") -> Outcome:
        """Do it."""
        ...


@dataclass(frozen=True, kw_only=True)
class Job:
    """An evaluation under way.

    Attributes:
        config: Its settings.
        encoder: Frozen.
        folder: Its own.
    """

    config: EvalConfig
    encoder: Encoder
    folder: Path

    @property
    def data(self) -> Path:
        """The data set's folder."""
        return Path(self.config.data).expanduser()

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return torch.device(self.config.device)

    @property
    def pyramid(self) -> Path | None:
        """The feature pyramid that was pre-trained with the encoder and lies beside it, if the task has one."""
        place = Path(self.config.encoder).expanduser()
        if getattr(self.config.task, "layout", None) != "fpn" or not place.is_dir():
            return None
        file = encoder_folder(place) / PYRAMID
        return file if file.is_file() else None

    def autocast(self) -> torch.autocast:
        """Half precision where the settings ask for it."""
        return autocast(self.config.precision, self.device)

    def identity(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """What decides the result, by dotted name."""
        config = self.config
        flat = {f"task.{key}": value for key, value in asdict(config.task).items()}
        if self.pyramid:
            flat["pyramid"] = hashlib.sha256(self.pyramid.read_bytes()).hexdigest()
        return flat | {
            "encoder": self.encoder.fingerprint,
            "seed": config.seed,
            "precision": config.precision,
            "data": dict(data),
        }


class Part(Protocol):
    """A part of a data set."""

    def describe(self) -> dict[str, Any]:
        """Which samples they are, in JSON's types."""
        ...


class Opens[P: Part](Protocol):
    """What opens a part of a data set; a class of such parts does."""

    def __call__(self, root: Path, part: str, *, official: bool) -> P:
        """Open the part "train" or "val" of what lies in ``root``; see ``EvalConfig.official_counts``."""
        ...


def open_parts[P: Part](kind: Opens[P], job: Job) -> tuple[P, P, dict[str, Any]]:
    """Open the training and the validation part of a job's data set, and ask what they say of themselves.

    Raises:
        DataError: If the folder holds no such data set.
    """
    train, val = (kind(job.data, part, official=job.config.official_counts) for part in ("train", "val"))
    return train, val, {"train": train.describe(), "val": val.describe()}


def evaluate(config: EvalConfig) -> Path:
    """Do what the settings say, unless it has been done.

    Args:
        config: The settings. The evaluation's folder comes to hold ``images.npz``, ``pictures/`` and, at the very end,
            ``record.json``.

    Returns:
        The record.

    Raises:
        PixioRobotError: If encoder, data set or settings cannot be used, or another process is at work there.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    check_device(config.device)
    root = Path(config.data).expanduser()
    if not root.is_dir():
        raise DataError(f"There is no folder {root.absolute()}; data= is where the data set lies.")
    encoder = open_encoder(config.encoder, seed=config.seed, device=config.device)
    task: TaskConfig = config.task
    name = config.encoder.removeprefix("shipped:").strip("/").replace("/", "--").replace(":", "-")
    folder = Path(config.folder).expanduser() / task.title / f"{name[-60:]}-{encoder.fingerprint[:8]}-{config.seed}"
    job = Job(config=config, encoder=encoder, folder=folder)
    file = folder / "record.json"
    settings = job.identity({}) | {"official_counts": config.official_counts, "data": str(root.resolve())}
    if file.exists():
        check_identity(read_record(file)["settings"], settings, folder)
        return file
    refusal = SettingError(f"Another process evaluates in {folder}. Wait for it, or choose another folder.")
    with alone(folder / ".lock", refusal):
        outcome = task.run(job)
        write_outcome(folder, outcome, _facts(job) | {"settings": settings})
    return file


def _facts(job: Job) -> dict[str, Any]:
    """Whatever a reader needs in order to judge and to repeat a result."""
    config, encoder = job.config, job.encoder
    return {
        "task": config.task.title,
        "encoder": {
            "name": config.encoder,
            "fingerprint": encoder.fingerprint,
            "licence": encoder.provenance.get("licence", "not stated"),
            "known_sizes": [name for name, spec in ENCODERS.items() if spec == encoder.spec],
        },
        "seed": config.seed,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{machine_name(job.device)}, {config.precision}",
        "versions": {name: version(name) for name in PACKAGES},
    }


def write_outcome(folder: Path, outcome: Outcome, facts: Mapping[str, Any]) -> None:
    """Write values of the images, pictures, and last of all the record; each whole or not at all."""
    with draft_of(folder / "images.npz") as draft, draft.open("wb") as file:
        np.savez_compressed(file, **outcome.images)  # pyright: ignore[reportArgumentType]
    for name, picture in outcome.pictures.items():
        (folder / "pictures").mkdir(exist_ok=True)
        with draft_of(folder / "pictures" / name) as draft:
            picture.save(draft, format="png")
    record = {**facts, "metrics": outcome.metrics, "data": outcome.data, "facts": outcome.facts}
    write_whole(folder / "record.json", json.dumps(record, indent=1, sort_keys=True) + "\n")


def read_record(file: Path) -> dict[str, Any]:
    """Read a record.

    Raises:
        DataError: If it is none.
    """
    try:
        record = json.loads(file.read_text())
        if {"task", "encoder", "metrics", "data", "settings"} <= record.keys():
            return record
    except (ValueError, AttributeError) as error:
        raise DataError(f"{file} is no record of an evaluation: {error}") from error
    raise DataError(f"{file} is no record of an evaluation.")
