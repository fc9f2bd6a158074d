"""Running an exported model: called like torch's, with the same answer."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pixio_robot.errors import ImageError
from pixio_robot.export.backends import BACKENDS, Precision, Session, installed, open_session
from pixio_robot.export.convert import FILE
from pixio_robot.export.folder import ExportFacts, read_facts, read_selftest
from pixio_robot.export.gate import Deviation, ask, check, compare
from pixio_robot.export.graph import Perceived, check_given
from pixio_robot.geometry.cameras import check_calibration
from pixio_robot.geometry.depth import Depth
from pixio_robot.images import check_images
from pixio_robot.tokens import Tokens

Values = Tensor | np.ndarray


class ExportedModel:
    """A loaded export.

    Args:
        session: The file in a runtime.
        facts: What is known of it.
        deviations: What the self-test found.
    """

    def __init__(self, session: Session, facts: ExportFacts, deviations: list[Deviation]) -> None:
        self._session, self.facts, self.deviations = session, facts, deviations

    def __call__(self, images: Values, intrinsics: Values | None = None, cam2base: Values | None = None) -> Perceived:
        """Look once; arguments and answer are those of ``OnePass.forward``, arrays of numpy are taken, too.

        Raises:
            ImageError: Images of another size, type or range than the export's.
            DataError: A calibration that cannot be.
            SettingError: An input that is missing, or one too many.
        """
        given = {"images": images, "intrinsics": intrinsics, "cam2base": cam2base}
        tensors = {name: None if x is None else torch.as_tensor(x) for name, x in given.items()}
        check_given(list(self.facts.inputs), tensors)
        feed = {name: x.cpu() for name, x in tensors.items() if x is not None}
        self._check(feed)
        feed |= {name: x.float() for name, x in feed.items() if name != "images"}
        found = self._session({name: x.contiguous().numpy() for name, x in feed.items()})
        return self._perceived({name: torch.from_numpy(x) for name, x in found.items()})

    def _check(self, feed: Mapping[str, Tensor]) -> None:
        facts = self.facts
        images = feed["images"]
        wanted = list(facts.inputs["images"]["shape"])
        shape = list(images.shape)
        if shape[1:] != wanted[1:] or (facts.batch is not None and shape[0] != facts.batch):
            height, width = facts.size
            raise ImageError(
                f"This file was exported for images {wanted} of {height} x {width} pixels, not {shape}: resize them, "
                "as with pixio_robot.images.resize, or export another file for that size or batch."
            )
        kind = facts.inputs["images"]["dtype"]
        if str(images.dtype).removeprefix("torch.") != kind:
            raise ImageError(
                f"This file was exported for images of type {kind}, not {images.dtype}; export(..., images=...)."
            )
        check_images(images.flatten(0, -4), facts.encoder["spec"]["patch_size"])
        check_calibration(shape[:-3], facts.size, feed.get("intrinsics"), cam2base=feed.get("cam2base"))

    def _perceived(self, found: Mapping[str, Tensor]) -> Perceived:
        patches, (rows, columns) = found["patches"], self.facts.encoder["grid"]
        none = patches.new_zeros(*patches.shape[:-2], 0, patches.shape[-1])  # of an encoder without class tokens
        depth = Depth(found["depth"], found["confidence"]) if "depth" in found else None
        return Perceived(Tokens(found.get("classes", none), patches, (rows, columns)), depth, found.get("policy"))


def load_export(
    folder: str | Path,
    backend: str = "onnxruntime",
    *,
    threads: int | None = None,
    precision: Precision = "float32",
) -> ExportedModel:
    """Load an export into a runtime, and let it answer its self-test first: a wrong engine should not reach a robot.

    Args:
        folder: What ``export`` wrote.
        backend: "onnxruntime" or "openvino".
        threads: Of the runtime; its own choice when absent.
        precision: "float32"; or "bfloat16" with OpenVINO, whose error is measured, in ``deviations``, and not judged.

    Raises:
        ExportError: A folder that is no export or was changed, a package that is missing, or answers that are off.
        UnknownNameError: No such backend or precision.
        SettingError: A precision that the backend does not have.
    """
    folder = Path(folder).expanduser()
    facts = read_facts(folder)
    session = open_session(folder / FILE, backend, threads=threads, precision=precision)
    inputs, outputs = read_selftest(folder)
    deviations = compare(ask(session, inputs, facts.batch), outputs)
    if precision == "float32":
        check(deviations, backend, facts.tolerance)
    return ExportedModel(session, facts, deviations)


def verify(folder: str | Path, backends: list[str] | None = None) -> dict[str, list[Deviation]]:
    """Check an export's files against their checksums, and its answers in every runtime against torch's.

    Args:
        folder: What ``export`` wrote.
        backends: Which; all that are installed when absent.

    Returns:
        By backend, how far each output is off.

    Raises:
        ExportError: The export is not sound; says why.
        UnknownNameError: No such backend.
    """
    return {name: load_export(folder, name).deviations for name in backends or installed() or list(BACKENDS)}
