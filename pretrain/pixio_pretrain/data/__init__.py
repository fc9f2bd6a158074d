"""Where images come from, and how they become batches."""

from pixio_pretrain.data.chance import Keep
from pixio_pretrain.data.loader import Loaded, Loader
from pixio_pretrain.data.locations import open_frames, open_source
from pixio_pretrain.data.resident import ResidentFrames
from pixio_pretrain.data.skips import Skipped
from pixio_pretrain.data.source import Frames, Source, Stream, split_episodes

__all__ = [
    "Frames",
    "Keep",
    "Loaded",
    "Loader",
    "ResidentFrames",
    "Skipped",
    "Source",
    "Stream",
    "open_frames",
    "open_source",
    "split_episodes",
]
