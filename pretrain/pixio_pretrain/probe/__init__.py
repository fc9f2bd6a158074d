"""What a linear read-out finds in frozen features: the task of a frame, positions in metres, depth."""

from pixio_pretrain.probe.geometry import GeometryProbe, Measurement, probe_geometry
from pixio_pretrain.probe.looks import NOTHING, PIXELS, Look
from pixio_pretrain.probe.records import ProbeRecord, read_records, write_records
from pixio_pretrain.probe.table import BASELINE, Comparison, to_markdown
from pixio_pretrain.probe.task import ProbeResult, class_features, probe_task
from pixio_pretrain.probe.truth import Truth

__all__ = [
    "BASELINE",
    "NOTHING",
    "PIXELS",
    "Comparison",
    "GeometryProbe",
    "Look",
    "Measurement",
    "ProbeRecord",
    "ProbeResult",
    "Truth",
    "class_features",
    "probe_geometry",
    "probe_task",
    "read_records",
    "to_markdown",
    "write_records",
]
