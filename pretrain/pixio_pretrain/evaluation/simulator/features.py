"""What an encoder says of every frame of a set, on disk: asked once, whatever is read from it, however often."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from pixio_pretrain.evaluation.encoders import PixelBackbone
from pixio_pretrain.evaluation.features import stored_rows
from pixio_pretrain.evaluation.job import Job
from pixio_pretrain.geometry.sets import RgbdSet
from pixio_robot.tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class SeenFrames:
    """A set of frames as an encoder sees it.

    Attributes:
        table: float16 [frames 1+n d], memory-mapped; the first token is the mean class token, or the mean patch of an
            encoder that has no class tokens.
        grid: Rows and columns of patches.
        raw: Whether patches are bare pixels.
        cells: Side of the grid that a frame's vector is averaged over.
    """

    table: Tensor
    grid: tuple[int, int]
    raw: bool
    cells: int

    def tokens(self, rows: Tensor) -> Tokens:
        """Tokens of some frames, float32; one class token."""
        found = self.table[rows].float()
        return Tokens(found[:, :1], found[:, 1:], self.grid)

    def patches(self, rows: Tensor) -> Tensor:
        """Patches of some frames, each with the class token beside it, float32 [b n 2d] (Pixio's read-out)."""
        tokens = self.tokens(rows)
        return torch.cat([tokens.patches, tokens.classes.expand_as(tokens.patches)], dim=2)

    def vectors(self, rows: Tensor) -> Tensor:
        """One vector for each of some frames: patches averaged over a coarse grid, then the class token, [b f]."""
        tokens = self.tokens(rows)
        if self.raw:
            return PixelBackbone.thumbnail(tokens.patches)
        cells = tokens.pool(min(self.cells, *self.grid)).patches
        return torch.cat([cells.flatten(1), tokens.classes[:, 0]], dim=1)


def see_frames(frames: RgbdSet, job: Job, folder: Path, name: str, *, cells: int, data: dict[str, Any]) -> SeenFrames:
    """Encode every frame of a set at the encoder's own size, or read what has been encoded.

    Args:
        frames: The set.
        job: Whose encoder.
        folder: Comes to hold ``NAME.npy``.
        name: Of the set.
        cells: See ``SeenFrames``.
        data: What the set says of itself.

    Raises:
        CheckpointError: The file holds tokens of other frames, or of another encoder.
        CacheError: The encoder gave a token that is not finite.
    """
    network: Any = job.encoder.backbone
    network.to(memory_format=torch.channels_last)  # convolutions are twice as fast on a CPU with AMX
    first = _encode(frames, np.zeros(1, np.int64), job)
    identity = {"data": data, "encoder": job.encoder.fingerprint, "precision": job.config.precision}

    def parts(start: int) -> Iterator[Tensor]:
        for rows in torch.arange(start, len(frames)).split(job.config.batch_size):
            tokens = _encode(frames, rows.numpy(), job)
            yield torch.cat([tokens.summary.unsqueeze(1), tokens.patches], dim=1).half().cpu()

    folder.mkdir(parents=True, exist_ok=True)
    shape = (len(frames), 1 + first.patches.shape[1], first.width)
    table = stored_rows(folder / f"{name}.npy", shape, identity, parts)
    raw = isinstance(job.encoder.backbone, PixelBackbone)
    return SeenFrames(table=table, grid=first.grid, raw=raw, cells=cells)


@torch.no_grad()
def _encode(frames: RgbdSet, rows: np.ndarray, job: Job) -> Tokens:
    side = job.encoder.spec.image_size
    images = F.resize(frames.images(rows), [side, side], InterpolationMode.BICUBIC, antialias=True)
    with job.autocast():
        return job.encoder(images.to(job.device)).map(Tensor.float)
