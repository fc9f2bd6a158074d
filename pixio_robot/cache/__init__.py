"""The feature cache: a frozen encoder runs once per frame, and policies train from what it said.

On disk it is a zarr v3 group that anyone can open. Each camera is one float16 array, [frames, class tokens + patches,
width], in one uncompressed file, so that reading is a memory map; so is each augmented variant of it. The attributes
say which encoder, data set, pooling and augmentation made it, and a mark per chunk of frames says what is whole, so
that a killed build goes on where it stopped.
"""

from pixio_robot.cache.build import Estimate, build_cache, estimate_cache
from pixio_robot.cache.reader import FeatureCache
from pixio_robot.cache.source import Augmentation, FrameSource, augment_frames
from pixio_robot.cache.verify import Damage, compare_with_encoder, verify_cache

__all__ = [
    "Augmentation",
    "Damage",
    "Estimate",
    "FeatureCache",
    "FrameSource",
    "augment_frames",
    "build_cache",
    "compare_with_encoder",
    "estimate_cache",
    "verify_cache",
]
