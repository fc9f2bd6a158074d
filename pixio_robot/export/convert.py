"""From torch to an ONNX file of standard operators, by torch.export."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from pixio_robot.errors import ExportError
from pixio_robot.export.backends import need
from pixio_robot.export.graph import OnePass

OPSET = 20
"""The lowest with Gelu as one operator; TensorRT 10, OpenVINO and ONNX Runtime read it."""

FILE = "model.onnx"
LARGEST = 1_900_000_000
"""Bytes of weights that fit into one file: protobuf ends at 2 GiB. More of them lie beside it."""


class _Flat(nn.Module):
    """A ``OnePass`` whose answer is a tuple of tensors."""

    def __init__(self, model: OnePass) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model(*inputs).named().values())


def write_onnx(
    model: OnePass, example: Mapping[str, Tensor], outputs: Sequence[str], folder: Path, *, dynamic: bool
) -> None:
    """Write ``model.onnx``, and its weights beside it if they are too large for one file.

    Args:
        model: The model, in float32 on the CPU.
        example: One tensor per input, of the shapes to export. Only shapes and types matter.
        outputs: Names of what it answers, in order.
        folder: Where the file goes.
        dynamic: Leave the batch open.

    Raises:
        ExportError: The extra is not installed, or torch cannot trace or translate the model.
    """
    for package in ("onnx", "onnxscript"):
        need(package)
    axes = {0: torch.export.Dim("batch", min=1)} if dynamic else None
    with _quiet():
        try:
            program = torch.export.export(
                _Flat(model),
                tuple(example[name] for name in model.inputs),
                dynamic_shapes={"inputs": tuple(axes for _ in model.inputs)},
            )
            found = torch.onnx.export(
                program,
                input_names=list(model.inputs),
                output_names=list(outputs),
                opset_version=OPSET,
                dynamic_shapes={"inputs": tuple({0: "batch"} for _ in model.inputs)} if dynamic else None,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # its errors share no base class
            told = str(error).strip().splitlines() or [""]
            raise ExportError(f"torch cannot export this model: {type(error).__name__}: {told[0]}") from error
    assert found is not None
    size = sum(x.numel() * x.element_size() for x in model.state_dict().values())
    found.save(folder / FILE, external_data=size > LARGEST)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what torch and onnxscript tell each other about their own classes."""
    logger = logging.getLogger("onnxscript")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
