"""Building a cache: every frame through the encoder once, and once more for each augmented variant."""

import errno
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from huggingface_hub.utils import tqdm
from torch import Tensor

from pixio_robot.cache.disk import check_disk
from pixio_robot.cache.layout import FORMAT, TokenFile, open_group
from pixio_robot.cache.reader import FeatureCache, progress, token_files
from pixio_robot.cache.recipe import Recipe
from pixio_robot.cache.source import Augmentation, FrameSource
from pixio_robot.encoder import Encoder
from pixio_robot.errors import CacheError, SettingError
from pixio_robot.runs import alone
from pixio_robot.tokens import Tokens


def build_cache(
    path: str | Path,
    encoder: Encoder,
    source: FrameSource,
    *,
    grid: int | None = None,
    size: tuple[int, int] | None = None,
    batch_size: int = 64,
    chunk: int = 256,
    variants: int = 0,
    augment: Augmentation | None = None,
) -> FeatureCache:
    """Encode every frame of a data set once.

    A build that was killed continues; a finished one is opened as it is. The result is the same either way.

    Args:
        path: The zarr group, made if absent.
        encoder: The frozen encoder.
        source: The frames.
        grid: Average the patches to grid x grid tokens before storing; every patch is kept when absent.
        size: Resize frames to (height, width) pixels first, bilinearly; as they come when absent.
        batch_size: Frames per encoder pass.
        chunk: Frames per chunk on disk, the unit that is lost by a kill. A build that continues keeps its own.
        variants: Number of augmented variants to store besides the clean frames.
        augment: Makes the variants from resized frames. Chance depends on the variant and the frame's index alone:
            all cameras of one moment are changed alike, and a resumed build gives the same frames.

    Raises:
        CacheError: If ``path`` holds a cache of another encoder, data set or setting, or something else; or another
            process is building it; or the disk is too small.
        SettingError: If variants are asked for without an augmentation, or the other way round.
    """
    path = Path(path)
    if not len(source) or not source.cameras:
        raise CacheError("The data set has no frames or no cameras to encode.")
    if variants < 0 or bool(variants) != (augment is not None):
        raise SettingError(f"variants={variants} and augment={augment} do not go together: give both, or neither.")
    recipe = Recipe(encoder=encoder, grid=grid, size=size, batch_size=batch_size, augment=augment)
    identity = cache_identity(encoder, source, grid=grid, size=size, variants=variants, augment=augment)
    if not _is_whole(path, identity):
        frame = recipe.encode(source.read(source.cameras[0], 0, 1), 0, 0)  # as large as every other
        nbytes = (frame.classes.nbytes + frame.patches.nbytes) * len(source) * len(source.cameras) * (variants + 1)
        check_disk(path, nbytes, cure="keep fewer patches, cameras or variants, or choose a path on another disk")
        path.parent.mkdir(parents=True, exist_ok=True)
        with sole_builder(path), _full_disk_told(path):
            _build(path, recipe, source, _start(path, encoder, source, identity, chunk))
    return FeatureCache.open(path, encoder=encoder, source=source)


def cache_identity(
    encoder: Encoder,
    source: FrameSource,
    *,
    grid: int | None = None,
    size: tuple[int, int] | None = None,
    variants: int = 0,
    augment: Augmentation | None = None,
) -> dict[str, Any]:
    """Give what must agree for two caches to hold the same, in JSON's types. Arguments as for ``build_cache``."""
    return {
        "format": FORMAT,
        **Recipe(encoder=encoder, grid=grid, size=size, augment=augment).identity,
        "dataset_sha256": source.fingerprint,
        "frames": len(source),
        "cameras": list(source.cameras),
        "variants": variants,
    }


def differing(path: Path, identity: dict[str, Any]) -> list[str]:
    """Name the facts in which the cache at ``path``, finished or not, is another than ``cache_identity`` says.

    Raises:
        CacheError: If there is none.
    """
    found = open_group(path).attrs
    return [key for key in identity if json.dumps(found.get(key)) != json.dumps(identity[key])]


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What a cache will cost.

    Attributes:
        frames: Frames to encode, over all cameras and variants.
        nbytes: Size on disk in bytes.
        seconds: Time to build, from the frames that were tried.
    """

    frames: int
    nbytes: int
    seconds: float


def estimate_cache(
    encoder: Encoder,
    source: FrameSource,
    *,
    grid: int | None = None,
    size: tuple[int, int] | None = None,
    batch_size: int = 64,
    variants: int = 0,
    augment: Augmentation | None = None,
) -> Estimate:
    """Encode a batch of each camera's frames, and say what all of them will cost. Arguments as for ``build_cache``."""
    recipe = Recipe(encoder=encoder, grid=grid, size=size, batch_size=batch_size, augment=augment)
    copies, tried = variants + 1, min(len(source), batch_size)
    nbytes, seconds = 0, 0.0
    for camera in source.cameras:
        recipe.encode(source.read(camera, 0, 1), 0, 0)  # not timed: the first pass sets up what the others find
        began = time.perf_counter()
        frames = source.read(camera, 0, tried)
        read = time.perf_counter()
        tokens = [recipe.encode(frames, 0, variant) for variant in range(min(copies, 2))]
        encoded = (time.perf_counter() - read) / len(tokens) * copies
        seconds += max(read - began, encoded) / tried * len(source)  # one is read while another is encoded
        nbytes += (tokens[0].classes[0].nbytes + tokens[0].patches[0].nbytes) * copies * len(source)
    return Estimate(frames=len(source) * len(source.cameras) * copies, nbytes=nbytes, seconds=seconds)


def sole_builder(path: Path) -> AbstractContextManager[None]:
    """Keep every other process from building or deleting a cache.

    Raises:
        CacheError: If another process has it.
    """
    refusal = CacheError(f"Another process is building {path}: wait for it, or choose another path.")
    return alone(path.with_name(f".{path.name}.lock"), refusal)


@contextmanager
def _full_disk_told(path: Path) -> Iterator[None]:
    """Say of a disk that others filled meanwhile what is lost: nothing."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise CacheError(
            f"The disk of {path} is full. What was encoded is kept: make room and build again, and it continues."
        ) from error


def _is_whole(path: Path, identity: dict[str, Any]) -> bool:
    """Whether the cache is there and whole, so that opening it needs no lock and no writable disk."""
    if not path.exists() or not any(path.iterdir()):
        return False
    attributes = _agreeing(path, identity)
    done, chunks = progress(path, attributes)
    return done == chunks and all(file.fits for file in token_files(path, attributes))


def _start(path: Path, encoder: Encoder, source: FrameSource, identity: dict[str, Any], chunk: int) -> dict[str, Any]:
    """Start a cache, or take up one that was started with the same identity; give its attributes."""
    if not path.exists() or not any(path.iterdir()):
        known = encoder.provenance
        told = {"encoder": known.get("name", "unnamed"), "encoder_source": encoder.source, "chunk": chunk}
        told |= {"encoder_licence": known.get("licence")}
        zarr.create_group(path, attributes=identity | told)
    attributes = _agreeing(path, identity)
    checksums = np.ascontiguousarray(source.row_checksums(), "<u4")
    zarr.create_array(path, name="row_checksums", data=checksums, chunks=checksums.shape, overwrite=True)
    return attributes


def _agreeing(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """The attributes of the cache at ``path``, which must be this one."""
    try:
        found = dict(open_group(path).attrs)
    except CacheError as error:
        raise CacheError(f"{path} holds something else than a cache. Choose another path, or delete it.") from error
    if others := differing(path, identity):
        told = "; ".join(f"{key} is {found.get(key)!r} there, {identity[key]!r} here" for key in others)
        raise CacheError(f"{path} holds a cache of something else ({told}). Choose another path, or delete it.")
    return found


def _build(path: Path, recipe: Recipe, source: FrameSource, attributes: dict[str, Any]) -> None:
    files = token_files(path, attributes)
    for file in files:
        file.repair()
    jobs = [
        _Job([file for file in files if file.camera == camera], chunk)
        for camera in source.cameras
        for chunk in range(files[0].chunks)
    ]
    with tqdm(total=len(files) * len(source), desc="caching features", unit="frame") as bar:
        bar.update(sum((len(job.files) - len(job.missing)) * (job.stop - job.start) for job in jobs))
        for job, frames in _read_ahead(source, [job for job in jobs if job.missing]):
            for file in job.missing:
                _store(file, job.chunk, recipe.encode(frames, job.start, file.variant), recipe.seen(frames))
                bar.update(len(frames))


class _Job:
    """A chunk of one camera's frames, and the files that lack it: one per variant.

    Args:
        files: The camera's files.
        chunk: Number of the chunk.
    """

    def __init__(self, files: list[TokenFile], chunk: int) -> None:
        self.files, self.chunk, self.camera = files, chunk, files[0].camera
        self.start = chunk * files[0].chunk
        self.stop = min(self.start + files[0].chunk, files[0].frames)
        self.missing = [file for file in files if not file.marks()[chunk]]


def _read_ahead(source: FrameSource, jobs: Sequence[_Job]) -> Iterator[tuple[_Job, Tensor]]:
    """Read the next chunk while one is encoded."""
    with ThreadPoolExecutor(1) as reader:
        coming = (reader.submit(source.read, job.camera, job.start, job.stop) for job in jobs)
        ahead = next(coming, None)
        for job in jobs:
            assert ahead is not None, "one read for each job"
            frames, ahead = ahead.result(), next(coming, None)
            yield job, frames


def _store(file: TokenFile, chunk: int, tokens: Tokens, seen: tuple[int, int]) -> None:
    values = torch.cat([tokens.classes, tokens.patches], dim=1).numpy()
    if not np.isfinite(values).all():
        raise CacheError(f"The encoder's output for {file.camera!r} overflows float16; it cannot be cached.")
    if not file.exists:
        file.create(values.shape[1:], grid=tokens.grid, seen=seen)
    file.write(chunk, values)
