"""Cached tokens by the row: from memory where they fit, through the cache's memory map where they do not."""

import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pixio_robot.cache import FeatureCache
from pixio_robot.machine import free_memory
from pixio_robot.tokens import Tokens

logger = logging.getLogger(__name__)

GIGABYTE = 1e9


class TokenStore:
    """The tokens of some cameras in a feature cache, of every variant, ready to be gathered.

    Args:
        cache: The cache.
        cameras: Which of its cameras.
        device: Where batches are wanted.
        memory_gb: Tokens of up to this many gigabytes are held in the device's memory; half of what is free there
            when absent, and all where nobody knows how much that is. What is beyond it stays on disk, and the operating
            system's page cache holds what it can.

    Attributes:
        gigabytes: Size of all tokens.
        in_memory: Whether they are held on the device.
    """

    def __init__(
        self, cache: FeatureCache, cameras: Sequence[str], device: torch.device, *, memory_gb: float | None = None
    ) -> None:
        self._cache, self._cameras, self._device = cache, tuple(cameras), device
        frames = len(cache) * (cache.variants + 1)
        samples = [cache.read(camera, [0]) for camera in self._cameras]
        self.gigabytes = (
            sum(frames * x.nbytes for tokens in samples for x in (tokens.classes, tokens.patches)) / GIGABYTE
        )
        free = free_memory(device)
        limit = memory_gb if memory_gb is not None else math.inf if free is None else free / 2 / GIGABYTE
        self.in_memory = self.gigabytes <= limit
        where = f"held in memory of {device}" if self.in_memory else f"more than {limit:.2f} GB: read from disk"
        logger.info("Cached tokens of %d camera(s), %.2f GB: %s.", len(self._cameras), self.gigabytes, where)
        self._held = {camera: self._hold(camera) for camera in self._cameras} if self.in_memory else {}

    def gather(self, rows: Tensor, variants: Tensor | None = None) -> dict[str, Tokens]:
        """Collect frames.

        Args:
            rows: Global frame indices, of any shape such as [b] or [b t].
            variants: For each of them the variant of the cache; the clean frames when absent.

        Returns:
            Float32 ``Tokens`` per camera: classes [*rows c d], patches [*rows n d].
        """
        if variants is None:
            variants = torch.zeros_like(rows)
        if self.in_memory:
            where = (variants * len(self._cache) + rows).to(self._device)
            return {camera: held.map(lambda x: x[where].float()) for camera, held in self._held.items()}
        return {camera: self._read(camera, rows.cpu(), variants.cpu()) for camera in self._cameras}

    def _hold(self, camera: str) -> Tokens:
        """All variants of a camera one after the other: classes [variants*frames c d], patches likewise."""
        frames, copies = len(self._cache), self._cache.variants + 1
        held = self._cache.load(camera).map(lambda x: x.to(self._device))
        if copies == 1:
            return held
        held = held.map(lambda x: torch.cat([x, x.new_empty(frames * (copies - 1), *x.shape[1:])]))
        for variant in range(1, copies):  # one at a time: all of them at once would take twice the memory
            part = self._cache.load(camera, variant)
            for whole, values in ((held.classes, part.classes), (held.patches, part.patches)):
                whole[variant * frames :][:frames] = values
        return held

    def _read(self, camera: str, rows: Tensor, variants: Tensor) -> Tokens:
        drawn = variants.unique().tolist()
        parts = [self._cache.read(camera, rows[variants == variant], variant) for variant in drawn]
        found = torch.cat([(variants == variant).flatten().nonzero()[:, 0] for variant in drawn])
        order = found.argsort().view(rows.shape)
        whole = _concatenate(parts).map(lambda x: x[order])
        return whole.map(lambda x: x.to(self._device).float())


def _concatenate(parts: Sequence[Tokens]) -> Tokens:
    if len(parts) == 1:
        return parts[0]
    classes, patches = torch.cat([part.classes for part in parts]), torch.cat([part.patches for part in parts])
    return Tokens(classes, patches, parts[0].grid)
