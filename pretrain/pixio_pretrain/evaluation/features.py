"""One vector per image of a labelled set, on disk: made once, resumable, memory-mapped."""

import json
import os
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
from pixio_robot.encoder import Encoder
from pixio_robot.errors import CacheError
from pixio_robot.tokens import Tokens

FLUSHED = 64
"""Batches between marks of progress; a kill costs at most so many."""


def vector_of(tokens: Tokens, kind: str) -> Tensor:
    """Make one vector [b d] of an image's tokens.

    Args:
        tokens: Of images [b ...].
        kind: "classes", the mean class token (of an encoder that has none, the mean patch), or "patches", the mean
            patch.
    """
    source = tokens.classes if kind == "classes" and tokens.classes.shape[1] else tokens.patches
    return source.mean(dim=1)


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
    mark = file.with_suffix(".json")
    identity = {**facts, "kind": kind, "norm": norm, "data": images.describe(), "encoder": job.encoder.fingerprint}
    identity["precision"] = job.config.precision
    done, shape = 0, (len(images), job.encoder.spec.width)
    if mark.exists():
        known = json.loads(mark.read_text())
        check_identity(known["identity"], identity, file)
        done = known["done"]
    else:
        np.lib.format.open_memmap(file, "w+", np.float16, shape)
    stored = np.lib.format.open_memmap(file, "r+")
    with tqdm(total=len(images), initial=done, desc=f"features of {file.stem}", unit="image") as progress:
        for number, batch in enumerate(batches_of(images, view, job, start=done) if done < len(images) else (), 1):
            found = encode(job.encoder, batch, job, kind=kind, norm=norm)
            if not torch.isfinite(found).all():
                raise CacheError(f"The encoder's features of image {done} or one after it are not finite in float16.")
            stored[done : done + len(batch)] = found.numpy()
            done += len(batch)
            progress.update(len(batch))
            if number % FLUSHED == 0 or done == len(images):
                stored.flush()
                draft = mark.with_suffix(".writing")
                draft.write_text(json.dumps({"identity": identity, "done": done}))
                os.replace(draft, mark)
    return torch.from_numpy(stored)


@torch.no_grad()
def encode(encoder: Encoder, batch: Tensor, job: Job, *, kind: str, norm: bool) -> Tensor:
    """Encode images uint8 [b 3 h w]: float16 [b d] on the CPU."""
    with job.autocast():
        (tokens,) = encoder.intermediate(batch.to(job.device), blocks=[-1], norm=norm)
        return vector_of(tokens.map(Tensor.float), kind).half().cpu()
