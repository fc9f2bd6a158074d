"""One vector per image of a labelled set, on disk: made once, resumable, memory-mapped."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2
from tqdm import tqdm

from pixio_pretrain.checkpoint import check_identity
from pixio_pretrain.evaluation.job import Job
from pixio_pretrain.evaluation.sets.classes import ClassSet
from pixio_pretrain.evaluation.views import batches_of
from pixio_robot.drafts import write_whole
from pixio_robot.encoder import Encoder
from pixio_robot.errors import CacheError
from pixio_robot.tokens import Tokens

FLUSHED = 64
"""Batches between marks of progress; a kill costs at most so many."""


def vector_of(tokens: Tokens, kind: str) -> Tensor:
    """Make one vector [b d] of an image's tokens.

    Args:
        tokens: Of images [b ...].
        kind: "classes", see ``Tokens.summary``, or "patches", the mean patch.
    """
    return tokens.summary if kind == "classes" else tokens.patches.mean(dim=1)


def stored_features(
    images: ClassSet, view: v2.Transform, job: Job, file: Path, *, kind: str, norm: bool, facts: dict[str, Any]
) -> Tensor:
    """Encode every image of a set, or read what has been encoded.

    Args:
        images: The set.
        view: Cuts an image, leaving nothing to chance.
        job: Whose encoder.
        file: A ``.npy`` that comes to hold float16 [n d]; a JSON beside it says how far it is.
        kind: See ``vector_of``.
        norm: Apply the encoder's final norm.
        facts: What ``view`` is.

    Returns:
        float16 [n d] on the CPU, memory-mapped.

    Raises:
        CheckpointError: The file holds features of other images, or of another encoder.
        CacheError: The encoder gave a feature that is not finite.
    """
    identity = {**facts, "kind": kind, "norm": norm, "data": images.describe(), "encoder": job.encoder.fingerprint}
    identity["precision"] = job.config.precision

    def parts(start: int) -> Iterator[Tensor]:
        for batch in batches_of(images, view, job, start=start):
            yield encode(job.encoder, batch, job, kind=kind, norm=norm)

    return stored_rows(file, (len(images), job.encoder.spec.width), identity, parts)


def stored_rows(
    file: Path, shape: tuple[int, ...], identity: Mapping[str, Any], parts: Callable[[int], Iterator[Tensor]]
) -> Tensor:
    """Make a table on disk, a few rows at a time; go on where it was stopped, or read it if it is whole.

    Args:
        file: A ``.npy`` that comes to hold float16 of this shape; a JSON beside it says how far it is.
        shape: Rows first.
        identity: What decides the numbers.
        parts: Gives the rows from one on, in order, float16 on the CPU, in parts.

    Returns:
        The table, memory-mapped.

    Raises:
        CheckpointError: The file holds another table.
        CacheError: A number is not finite.
    """
    mark, done = file.with_suffix(".json"), 0
    if mark.exists():
        known = json.loads(mark.read_text())
        check_identity(known["identity"], identity, file)
        done = known["done"]
    else:
        np.lib.format.open_memmap(file, "w+", np.float16, shape)
    stored = np.lib.format.open_memmap(file, "r+")
    with tqdm(total=shape[0], initial=done, desc=f"features of {file.stem}", unit="image") as progress:
        for number, found in enumerate(parts(done) if done < shape[0] else (), 1):
            if not torch.isfinite(found).all():
                raise CacheError(f"The encoder's features of image {done} or one after it are not finite in float16.")
            stored[done : done + len(found)] = found.numpy()
            done += len(found)
            progress.update(len(found))
            if number % FLUSHED == 0 or done == shape[0]:
                stored.flush()
                write_whole(mark, json.dumps({"identity": identity, "done": done}))
    return torch.from_numpy(stored)


@torch.no_grad()
def encode(encoder: Encoder, batch: Tensor, job: Job, *, kind: str, norm: bool) -> Tensor:
    """Encode images uint8 [b 3 h w]: float16 [b d] on the CPU."""
    with job.autocast():
        (tokens,) = encoder.intermediate(batch.to(job.device), blocks=[-1], norm=norm)
        return vector_of(tokens.map(Tensor.float), kind).half().cpu()
