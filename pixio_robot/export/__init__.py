"""The encoder pass as a file that a robot runs without torch's model code: ONNX, checked against torch.

``export`` writes a folder, ``load_export`` runs it behind the same call as torch's, ``verify`` asks the file again
whether it still answers as torch did, and ``measure`` says how fast it is here.
"""

from pixio_robot.export.adapters import load_adapter
from pixio_robot.export.graph import OnePass, Perceived
from pixio_robot.export.latency import measure
from pixio_robot.export.runtime import ExportedModel, load_export, verify
from pixio_robot.export.write import export

__all__ = ["ExportedModel", "OnePass", "Perceived", "export", "load_adapter", "load_export", "measure", "verify"]
