"""Where images come from, and how they become batches.

- ``locations`` opens a ``source`` by its name: one with random access (``folder``, ``store``, ``synthetic``; ``joined``
  and ``companions`` on top of them), or one that is read in runs (``shards``; ``video`` with ``episodes``).
- ``loader`` makes batches of it, in its own process or in ``workers``, in an ``order`` (``lanes`` for what is read in
  runs); ``chance`` fixes all randomness, and ``skips`` counts what cannot be read.
- An objective says how an image becomes a sample (``samples``), with ``crops`` and ``pairs``; ``resident`` cuts on the
  GPU.
"""

from pixio_pretrain.data.loader import Loaded, Loader
from pixio_pretrain.data.locations import open_frames, open_source
from pixio_pretrain.data.resident import ResidentFrames
from pixio_pretrain.data.source import Frames, Source, split_episodes

__all__ = [
    "Frames",
    "Loaded",
    "Loader",
    "ResidentFrames",
    "Source",
    "open_frames",
    "open_source",
    "split_episodes",
]
