"""Pixio visual encoders for robot learning: load, adapt, cache and export one encoder pass.

A map:

- An encoder: ``checkpoints`` reads and writes one (``layouts``, and ``foreign`` for what transformers runs);
  ``encoder`` is what comes out, of ``nn`` and ``stems``; ``images`` go in, ``tokens`` come out.
- Another encoder, of small convolutions: ``descriptors`` of every second pixel, and ``keypoints`` read from them.
- What is made of tokens: ``adapter`` for a policy, ``geometry`` for depth, points and several views of a scene.
- What keeps them: ``cache``, on disk. What carries the pass elsewhere: ``export``, as ONNX.
- Underneath: ``errors``, ``drafts`` (files are whole or not there), ``runs`` (locks, and how to stop), ``hashes`` and
  ``machine``.
"""

import importlib
from typing import TYPE_CHECKING, Any

from pixio_robot.errors import PixioRobotError

if TYPE_CHECKING:
    from pixio_robot.adapter import VisualFeatureAdapter
    from pixio_robot.cache import FeatureCache, FrameSource, build_cache
    from pixio_robot.checkpoints import load_encoder
    from pixio_robot.encoder import ENCODERS, Encoder, EncoderSpec, create_encoder
    from pixio_robot.geometry.depth import DepthModel, load_depth
    from pixio_robot.geometry.multiview import MultiViewModel, load_multiview
    from pixio_robot.geometry.perception import Perception
    from pixio_robot.keypoints import learn_keypoints
    from pixio_robot.tokens import Tokens

# Public names by module, imported on first use: a simulator that only raises our errors need not load PyTorch.
_HOMES = {
    "adapter": ("VisualFeatureAdapter",),
    "cache": ("FeatureCache", "FrameSource", "build_cache"),
    "checkpoints": ("load_encoder",),
    "encoder": ("ENCODERS", "Encoder", "EncoderSpec", "create_encoder"),
    "geometry.depth": ("DepthModel", "load_depth"),
    "geometry.multiview": ("MultiViewModel", "load_multiview"),
    "geometry.perception": ("Perception",),
    "keypoints": ("learn_keypoints",),
    "tokens": ("Tokens",),
}
_LAZY = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "ENCODERS",
    "DepthModel",
    "Encoder",
    "EncoderSpec",
    "FeatureCache",
    "FrameSource",
    "MultiViewModel",
    "Perception",
    "PixioRobotError",
    "Tokens",
    "VisualFeatureAdapter",
    "build_cache",
    "create_encoder",
    "learn_keypoints",
    "load_depth",
    "load_encoder",
    "load_multiview",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return __all__
