"""What a linear read-out finds in frozen features: the task of a frame, positions in metres, depth.

A library without a command. ``scripts/compare_encoders.py`` calls all of it: ``looks`` encodes frames, ``geometry``
fits read-outs (``ridge``, ``depth``, ``keypoints``) to the ``truth`` beside a frame store and measures them, ``told``
does so without an encoder, ``records`` keeps that, and ``table`` writes it with intervals (``resampling``). ``task``
gives the one number of a run's model card. ``evaluation.simulator`` takes ``ridge``, ``depth``, ``labels`` and
``resampling``, and ``scripts/benchmark`` the ``palette``.
"""

from pixio_pretrain.probe.geometry import GeometryProbe, Measurement, probe_geometry
from pixio_pretrain.probe.looks import NOTHING, PIXELS, Look
from pixio_pretrain.probe.records import ProbeRecord, read_records, write_records
from pixio_pretrain.probe.table import BASELINE, Comparison, to_markdown
from pixio_pretrain.probe.task import ProbeResult, class_features, probe_task
from pixio_pretrain.probe.told import color_places, exact_places, keypoint_places, probe_told
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
    "color_places",
    "exact_places",
    "keypoint_places",
    "probe_geometry",
    "probe_task",
    "probe_told",
    "read_records",
    "to_markdown",
    "write_records",
]
