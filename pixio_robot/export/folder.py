"""Folders of exported models: ``model.onnx``, ``export.json`` that says what it is, and ``selftest.npz``."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pixio_robot.errors import ExportError
from pixio_robot.export.convert import FILE
from pixio_robot.hashes import file_sha256

FACTS, SELFTEST = "export.json", "selftest.npz"
FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportFacts:
    """What ``export.json`` says.

    Attributes:
        format: Of the folder.
        size: (height, width) of the images in pixels.
        batch: How many observations at once; None for any number.
        cameras: With more than one, every input and output but the policy's has a second dimension for them.
        inputs: Shape, type, unit and meaning by name; "batch" stands for an open dimension.
        outputs: The same of the outputs.
        encoder: Name, sha-256 of the weights, licence, sizes, grid of patches.
        depth: Settings of the depth head; None without one.
        adapter: Settings of the policy's adapter; None without one.
        tolerance: Of the gate.
        deviations: By backend and output, how far off torch's the answers were, as the gate measures it.
        files: Sha-256 by file name.
        versions: Of the packages that made it.
        made: When, and in which opset.
    """

    format: int = FORMAT
    size: tuple[int, int]
    batch: int | None
    cameras: int
    inputs: dict[str, dict[str, Any]]
    outputs: dict[str, dict[str, Any]]
    encoder: dict[str, Any]
    depth: dict[str, Any] | None
    adapter: dict[str, Any] | None
    tolerance: float
    deviations: dict[str, dict[str, float]]
    files: dict[str, str]
    versions: dict[str, str]
    made: dict[str, Any]


def write_facts(folder: Path, facts: ExportFacts) -> None:
    """Write ``export.json``."""
    (folder / FACTS).write_text(json.dumps(asdict(facts), indent=2) + "\n")


def read_facts(folder: str | Path) -> ExportFacts:
    """Read ``export.json`` and check every file against its checksum.

    Raises:
        ExportError: No export, one of another format, or files that are missing or were changed.
    """
    folder = Path(folder).expanduser()
    try:
        stored: Any = json.loads((folder / FACTS).read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ExportError(f"{folder} is no exported model: it holds no {FACTS} with {FILE} beside it.") from error
    except ValueError as error:
        raise ExportError(f"{folder / FACTS} is damaged: {error}.") from error
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        raise ExportError(f"{folder / FACTS} is not of format {FORMAT}, the one that this version reads: export anew.")
    known: dict[str, Any] = stored | {"size": tuple(stored.get("size", ()))}
    try:
        facts = ExportFacts(**known)
    except TypeError as error:
        raise ExportError(f"{folder / FACTS} is damaged: {error}.") from error
    for name, wanted in facts.files.items():
        if not (folder / name).is_file():
            raise ExportError(f"{folder} holds no {name}: it was not copied whole.")
        if file_sha256(folder / name) != wanted:
            raise ExportError(
                f"{folder / name} was changed after it was exported: its sha256 is not the one in {FACTS}. Export anew."
            )
    return facts


def write_selftest(folder: Path, inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> None:
    """Write samples and torch's answers: arrays ``input.NAME`` and ``output.NAME``."""
    arrays = {f"input.{name}": value for name, value in inputs.items()}
    arrays |= {f"output.{name}": value for name, value in outputs.items()}
    np.savez_compressed(folder / SELFTEST, **arrays)  # pyright: ignore[reportArgumentType]


def read_selftest(folder: str | Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Give the self-test's inputs and torch's answers by name."""
    with np.load(Path(folder).expanduser() / SELFTEST, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    inputs, outputs = (
        {name.removeprefix(kind): value for name, value in arrays.items() if name.startswith(kind)}
        for kind in ("input.", "output.")
    )
    return inputs, outputs
