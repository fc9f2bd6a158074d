"""The tasks, by name."""

from typing import Any

from pixio_pretrain.evaluation.depth import DepthConfig
from pixio_pretrain.evaluation.detection import DetectionConfig
from pixio_pretrain.evaluation.finetune import FinetuneConfig
from pixio_pretrain.evaluation.knn import KnnConfig
from pixio_pretrain.evaluation.linear import LinearConfig
from pixio_pretrain.evaluation.segmentation import SegmentationConfig
from pixio_pretrain.evaluation.simulator.task import SimulatorConfig

TASKS: dict[str, type[Any]] = {
    "knn": KnnConfig,
    "linear": LinearConfig,
    "finetune": FinetuneConfig,
    "depth": DepthConfig,
    "segmentation": SegmentationConfig,
    "detection": DetectionConfig,
    "simulator": SimulatorConfig,
}
