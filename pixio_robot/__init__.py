"""Pixio visual encoders for robot learning: load, adapt, cache and export one encoder pass."""

from pixio_robot.adapter import VisualFeatureAdapter
from pixio_robot.cache import FeatureCache, FrameSource, build_cache
from pixio_robot.checkpoints import load_encoder
from pixio_robot.encoder import ENCODERS, Encoder, EncoderSpec, create_encoder
from pixio_robot.errors import PixioRobotError
from pixio_robot.tokens import Tokens

__all__ = [
    "ENCODERS",
    "Encoder",
    "EncoderSpec",
    "FeatureCache",
    "FrameSource",
    "PixioRobotError",
    "Tokens",
    "VisualFeatureAdapter",
    "build_cache",
    "create_encoder",
    "load_encoder",
]
