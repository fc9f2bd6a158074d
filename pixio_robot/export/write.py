"""Making an export: the file, what is known of it, its self-test, and the gate that it has to pass first."""

import os
import platform
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pixio_robot.adapter import VisualFeatureAdapter
from pixio_robot.encoder import Encoder
from pixio_robot.errors import SettingError, UnknownNameError
from pixio_robot.export.adapters import describe_adapter
from pixio_robot.export.backends import installed, need, open_session
from pixio_robot.export.convert import FILE, OPSET, write_onnx
from pixio_robot.export.folder import FACTS, ExportFacts, read_selftest, write_facts, write_selftest
from pixio_robot.export.gate import TOLERANCE, ask, check, compare
from pixio_robot.export.graph import OnePass
from pixio_robot.export.samples import sample_inputs
from pixio_robot.geometry.depth import DepthModel
from pixio_robot.hashes import file_sha256

ImageType = Literal["uint8", "float32"]
IMAGE_TYPES: dict[ImageType, torch.dtype] = {"uint8": torch.uint8, "float32": torch.float32}

_MEANING = {
    "images": "RGB, channels first",
    "intrinsics": "pinhole matrices [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] of these images, pixel centres at +0.5",
    "cam2base": "poses, OpenCV axes (x right, y down, z forward)",
    "classes": "class tokens of the last block, after the final norm",
    "patches": "patch tokens of the last block, after the final norm, row-major",
    "depth": "distance along the optical axis",
    "confidence": "from 1 upwards; only its order means something",
    "policy": "what the policy's adapter makes of all cameras",
}
_UNITS = {"intrinsics": "pixels", "cam2base": "metres", "depth": "metres"}


def export(
    encoder: Encoder,
    folder: str | Path,
    *,
    depth: DepthModel | None = None,
    adapter: VisualFeatureAdapter | None = None,
    size: tuple[int, int] | None = None,
    batch: int | None = 1,
    images: ImageType = "uint8",
    overwrite: bool = False,
) -> Path:
    """Write one encoder pass, and all that is read from it, as an ONNX file that was checked against torch.

    The folder appears whole, after every runtime that is installed answered the self-test as torch does, or not at all.

    Args:
        encoder: The encoder, in float32 on the CPU.
        folder: Where the export goes.
        depth: A depth model on this encoder. Intrinsics and poses become inputs if its head uses them.
        adapter: A policy's adapter. With several cameras, all inputs get a second dimension for them.
        size: (height, width) of the images in pixels; the encoder's native size when absent. One file has one size.
        batch: Observations at once; None leaves it open, which costs some speed.
        images: "uint8", as cameras give them, or "float32" in [0, 1]. The graph normalises either.
        overwrite: Replace an export that is there already.

    Returns:
        The folder.

    Raises:
        ExportError: The extra is not installed, torch cannot export the model, or an answer is off.
        SettingError: Parts that do not belong together, a size or batch that cannot be, or a folder that is taken.
        ImageError: A size that the encoder's patches do not divide.
        UnknownNameError: No such type of images.
    """
    folder = Path(folder).expanduser()
    _check_place(folder, overwrite=overwrite)
    if images not in IMAGE_TYPES:
        raise UnknownNameError("type of images", images, IMAGE_TYPES)
    if batch is not None and batch < 1:
        raise SettingError(f"batch={batch}: one observation at least, or None for any number.")
    model = OnePass(encoder, depth=depth, adapter=adapter)
    if {(x.dtype, x.device.type) for x in model.parameters()} != {(torch.float32, "cpu")}:
        raise SettingError("Export in float32 on the CPU: model.float().cpu(), or load_encoder(name) without options.")
    size = size or (encoder.spec.image_size, encoder.spec.image_size)
    need("onnxruntime")  # before minutes of work
    inputs = sample_inputs(model.inputs, batch=batch, cameras=model.cameras, size=size, dtype=IMAGE_TYPES[images])
    outputs = _answers(model, inputs, batch)

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-writing-") as scratch:
        draft = Path(scratch, "draft")
        draft.mkdir()
        # Traced on other numbers than it is tested on: an input that became a constant fails the gate.
        example = {name: torch.rand_like(x[: batch or 2].float()).to(x.dtype) for name, x in inputs.items()}
        write_onnx(model, example, list(outputs), draft, dynamic=batch is None)
        write_selftest(draft, {name: x.numpy() for name, x in inputs.items()}, outputs)
        deviations = _gate(draft, batch)
        files = {file.name: file_sha256(file) for file in sorted(draft.iterdir())}
        write_facts(
            draft,
            ExportFacts(
                size=size,
                batch=batch,
                cameras=model.cameras,
                inputs={name: _describe(name, x.numpy(), batch, images) for name, x in inputs.items()},
                outputs={name: _describe(name, x, batch, images) for name, x in outputs.items()},
                encoder=_describe_encoder(encoder, size),
                depth=None if depth is None else asdict(depth.settings),
                adapter=None if adapter is None else describe_adapter(adapter),
                tolerance=TOLERANCE,
                deviations=deviations,
                files=files,
                versions=_versions(),
                made={"date": datetime.now(UTC).isoformat(timespec="seconds"), "opset": OPSET},
            ),
        )
        old = Path(scratch, "old")
        if folder.exists():
            os.replace(folder, old)
        try:
            os.replace(draft, folder)
        except OSError:
            if old.exists():
                os.replace(old, folder)
            raise
    return folder


def _check_place(folder: Path, *, overwrite: bool) -> None:
    if not folder.exists():
        return
    if not (folder / FACTS).is_file():
        raise SettingError(f"{folder} exists and is no export; choose a new folder, such as {folder / 'export'}.")
    if not overwrite:
        raise SettingError(f"{folder} holds an export already; pass overwrite=True (--overwrite) to replace it.")


@torch.no_grad()
def _answers(model: OnePass, inputs: dict[str, Tensor], batch: int | None) -> dict[str, np.ndarray]:
    """Torch's answers to all samples."""
    steps = [
        {name: x[start : start + (batch or 1)] for name, x in inputs.items()}
        for start in range(0, len(inputs["images"]), batch or 1)
    ]
    parts = [model(**step).named() for step in steps]
    return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}


def _gate(draft: Path, batch: int | None) -> dict[str, dict[str, float]]:
    """Let every runtime that is installed answer the self-test; give how far each output is off."""
    inputs, outputs = read_selftest(draft)
    found = {}
    for backend in installed():
        deviations = compare(ask(open_session(draft / FILE, backend), inputs, batch), outputs)
        check(deviations, backend)
        found[backend] = {one.output: one.scaled for one in deviations}
    return found


def _describe(name: str, values: np.ndarray, batch: int | None, images: ImageType) -> dict[str, Any]:
    """What is to be known of an input or output."""
    levels = "0 to 255" if images == "uint8" else "0 to 1"
    unit = levels if name == "images" else _UNITS.get(name, "none")
    shape = [batch or "batch", *values.shape[1:]]
    return {"shape": shape, "dtype": str(values.dtype), "unit": unit, "meaning": _MEANING[name]}


def _describe_encoder(encoder: Encoder, size: tuple[int, int]) -> dict[str, Any]:
    side = encoder.spec.patch_size
    return {
        "name": encoder.provenance.get("name"),
        "source": encoder.source,
        "sha256": encoder.fingerprint,
        "licence": encoder.provenance.get("licence", "not stated"),
        "spec": asdict(encoder.spec),
        "grid": [size[0] // side, size[1] // side],
    }


def _versions() -> dict[str, str]:
    packages = ("pixio-robot", "torch", "onnx", "onnxscript", *installed())
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
