"""What a frozen encoder says of every frame of a set: asked once where memory allows, else whenever it is needed."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pixio_pretrain.geometry.sets import RgbdSet, Rows
from pixio_pretrain.precision import autocast
from pixio_robot.encoder import Encoder
from pixio_robot.tokens import Tokens

_BATCH = 32


class Taps:
    """Tokens of some of an encoder's blocks for the frames of a set.

    Args:
        encoder: The encoder.
        frames: The set.
        blocks: After which blocks, counted from 0.
        gigabytes: Memory that they may take, as float16; with more, the encoder runs again for every batch.
        precision: "bf16" lets the encoder compute in bfloat16, 2.5 times as fast on a CPU with AMX; training bears it,
            measuring should not.

    Attributes:
        kept: Whether they are in memory.
    """

    def __init__(
        self,
        encoder: Encoder,
        frames: RgbdSet,
        blocks: Sequence[int],
        *,
        gigabytes: float = 4.0,
        precision: str = "fp32",
    ) -> None:
        self._encoder, self._frames, self._blocks, self._precision = encoder, frames, list(blocks), precision
        first = self._encode(np.zeros(1, np.int64))
        self._grid, self._classes = first[0].grid, first[0].classes.shape[1]
        shape = (len(frames), len(blocks), self._classes + first[0].patches.shape[1], first[0].width)
        self.kept = 2 * np.prod(shape, dtype=np.int64) <= gigabytes * 2**30
        self._table: Tensor | None = None
        if self.kept:
            self._table = torch.empty(shape, dtype=torch.float16)
            rows = np.arange(len(frames))
            for part in tqdm(np.array_split(rows, -(-len(rows) // _BATCH)), desc="encode", unit="batch", leave=False):
                tokens = self._encode(part)
                whole = torch.stack([torch.cat([one.classes, one.patches], dim=1) for one in tokens], dim=1)
                self._table[torch.from_numpy(part)] = whole.to("cpu", torch.float16)

    def __call__(self, frames: Rows, device: torch.device | str = "cpu") -> list[Tokens]:
        """Tokens of some frames, one ``Tokens`` per block, float32 on ``device``."""
        if self._table is None:
            return [one.map(lambda part: part.to(device, torch.float32)) for one in self._encode(frames)]
        found = self._table[torch.from_numpy(frames)].to(device, torch.float32)
        return [
            Tokens(found[:, tap, : self._classes], found[:, tap, self._classes :], self._grid)
            for tap in range(len(self._blocks))
        ]

    def _encode(self, frames: Rows) -> list[Tokens]:
        with autocast(self._precision, next(self._encoder.parameters()).device):
            return self._encoder.intermediate(self._frames.images(frames), blocks=self._blocks)
