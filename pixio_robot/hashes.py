"""Sha-256 of files and of weights, by which both are told apart."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor


def file_sha256(file: Path) -> str:
    """Hash a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def weights_sha256(weights: Iterable[tuple[str, Tensor]], *, facts: str = "") -> str:
    """Hash facts, then names, shapes and values of weights in the order in which they come."""
    digest = hashlib.sha256(facts.encode())
    for name, value in weights:
        digest.update(f"{name}{list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()
