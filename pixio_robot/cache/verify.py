"""Checking a cache: its bytes against their checksums, and a sample of its frames against the encoder."""

from pathlib import Path
from typing import NamedTuple

import torch

from pixio_robot.cache.layout import open_group
from pixio_robot.cache.reader import FeatureCache, token_files
from pixio_robot.cache.recipe import Recipe
from pixio_robot.cache.source import Augmentation, FrameSource
from pixio_robot.encoder import Encoder

# Largest deviation of equal tokens that were computed twice: rounding to float16, another batch or another device.
TOLERANCE = {"float32": 4e-3, "float16": 2e-2, "bfloat16": 1e-1}


class Damage(NamedTuple):
    """Chunks of one file whose bytes are not those that the build wrote.

    Attributes:
        camera: The camera.
        variant: 0 for the clean frames, from 1 for augmented ones.
        chunks: Their numbers.
    """

    camera: str
    variant: int
    chunks: list[int]


def verify_cache(path: str | Path, *, repair: bool = False) -> list[Damage]:
    """Compare every chunk that is marked as written with its checksum.

    Args:
        path: The cache, finished or not.
        repair: Forget the damaged chunks, so that the next build makes them anew.

    Returns:
        What is damaged; nothing in a sound cache.

    Raises:
        CacheError: If there is no cache.
    """
    path = Path(path)
    files = token_files(path, dict(open_group(path).attrs))
    damages = [Damage(file.camera, file.variant, file.repair() if repair else file.damaged()) for file in files]
    return [damage for damage in damages if damage.chunks]


def compare_with_encoder(
    cache: FeatureCache,
    encoder: Encoder,
    source: FrameSource,
    *,
    frames: int,
    generator: torch.Generator,
    augment: Augmentation | None = None,
) -> float:
    """Encode a random sample of frames again and give the largest deviation of the cached tokens.

    Args:
        cache: The cache.
        encoder: The encoder that made it.
        source: The frames that it was made from.
        frames: Size of the sample, per camera.
        generator: Draws the sample.
        augment: What made the variants, if they are to be compared too.

    Returns:
        Over all values, the largest distance as a fraction of the value's size plus the tokens' root mean square.
        Equal tokens stay below ``TOLERANCE`` of the encoder's dtype; those of another frame are near 1.
    """
    size, grid = cache.attributes["size"], cache.attributes["pooled_to"]
    recipe = Recipe(encoder=encoder, grid=grid, size=tuple(size) if size else None, augment=augment)
    worst = 0.0
    for camera in cache.cameras:
        for row in torch.randperm(len(cache), generator=generator)[:frames].tolist():
            images = source.read(camera, row, row + 1)
            for variant in range(cache.variants + 1 if augment else 1):
                again, kept = recipe.encode(images, row, variant), cache.read(camera, [row], variant)
                for new, old in zip(again[:2], kept[:2], strict=True):
                    if new.numel():
                        near, there = new.double(), old.double()
                        scale = near.abs() + near.square().mean().sqrt()
                        worst = max(worst, ((there - near).abs() / scale).max().item())
    return worst
