"""Runtimes that an exported file runs on. Each is an extra, imported on use: ``pip install "pixio-robot[export]"``."""

import importlib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np

from pixio_robot.errors import ExportError, SettingError, UnknownNameError

Precision = Literal["float32", "bfloat16"]


class Session(Protocol):
    """A file, loaded: arrays by input name in, arrays by output name out."""

    def __call__(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once. The answers are the caller's to keep."""
        ...


def need(package: str) -> Any:
    """Import a package of the extra "export".

    Raises:
        ExportError: It is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ExportError(
            f'Exported models need {package}, which is not installed: pip install "pixio-robot[export]" ({error}).'
        ) from error


class OnnxRuntime:
    """ONNX Runtime on the CPU, in float32.

    Args:
        path: The file.
        threads: Of one operation; the runtime's own choice when absent.
        precision: "float32"; there is no other here.

    Raises:
        ExportError: The package is missing, or refuses the file.
        SettingError: A precision that it does not have.
    """

    def __init__(self, path: Path, *, threads: int | None, precision: Precision) -> None:
        if precision != "float32":
            raise SettingError(f"onnxruntime computes in float32, not {precision!r}, on a CPU; openvino has bfloat16.")
        runtime = need("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors share no base class
            raise ExportError(f"onnxruntime cannot read {path}: {error}") from error
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once."""
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(feed)), strict=True))


class OpenVino:
    """OpenVINO on the CPU. It would choose bfloat16 by itself where the CPU has it; here it is told what to do.

    Args:
        path: The file.
        threads: The runtime's own choice when absent.
        precision: "float32", or "bfloat16", which is faster on CPUs that have it, and rounds to 3 digits.

    Raises:
        ExportError: The package is missing, or refuses the file.
    """

    def __init__(self, path: Path, *, threads: int | None, precision: Precision) -> None:
        openvino = need("openvino")
        settings = {
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
            "PERFORMANCE_HINT": "LATENCY",
        }
        settings |= {"INFERENCE_NUM_THREADS": threads} if threads else {}
        try:
            compiled = openvino.Core().compile_model(str(path), "CPU", settings)
        except RuntimeError as error:
            raise ExportError(f"openvino cannot read {path}: {error}") from error
        self._request = compiled.create_infer_request()
        self._outputs = [output.any_name for output in compiled.outputs]

    def __call__(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once."""
        self._request.infer(dict(feed), share_inputs=True)
        return {name: self._request.get_tensor(name).data.copy() for name in self._outputs}


BACKENDS: dict[str, type[OnnxRuntime] | type[OpenVino]] = {"onnxruntime": OnnxRuntime, "openvino": OpenVino}


def open_session(path: Path, backend: str, *, threads: int | None = None, precision: Precision = "float32") -> Session:
    """Load a file into a runtime.

    Args:
        path: The file.
        backend: A key of ``BACKENDS``.
        threads: Of the runtime; its own choice when absent.
        precision: What it computes in.

    Raises:
        UnknownNameError: No such backend or precision.
        ExportError: Its package is missing, or refuses the file.
        SettingError: A precision that the backend does not have, or no threads at all.
    """
    if backend not in BACKENDS:
        raise UnknownNameError("backend", backend, BACKENDS)
    if precision not in get_args(Precision):
        raise UnknownNameError("precision", precision, get_args(Precision))
    if threads is not None and threads < 1:
        raise SettingError(f"threads={threads}: a runtime needs at least 1.")
    return BACKENDS[backend](path, threads=threads, precision=precision)


def installed() -> list[str]:
    """Name the backends that are installed here."""
    return [name for name in BACKENDS if find_spec(name) is not None]
