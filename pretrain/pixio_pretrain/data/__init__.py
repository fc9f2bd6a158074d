"""Where images come from, and how they become batches."""

from pixio_pretrain.data.frames import Frames, open_frames, split_episodes

__all__ = ["Frames", "open_frames", "split_episodes"]
