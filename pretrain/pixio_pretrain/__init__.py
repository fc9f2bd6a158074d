"""Pre-training of Pixio encoders on your own frames."""

from pixio_pretrain.config import RunConfig
from pixio_pretrain.data import open_frames
from pixio_pretrain.objectives import OBJECTIVES, create_objective
from pixio_pretrain.probe import probe_task
from pixio_pretrain.training import train

__all__ = ["OBJECTIVES", "RunConfig", "create_objective", "open_frames", "probe_task", "train"]
