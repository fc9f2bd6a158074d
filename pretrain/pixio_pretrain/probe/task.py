"""Which task a frame shows: the quickest honest look at an encoder."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pixio_pretrain.data import Frames
from pixio_pretrain.probe.looks import Look
from pixio_pretrain.probe.ridge import fit_best
from pixio_robot.encoder import Encoder
from pixio_robot.errors import DataError


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """Held-out frames that a linear read-out put right.

    Attributes:
        right: Frames put right.
        frames: Frames asked about.
        episodes: Episodes that they come from.
        classes: Answers to choose from.
    """

    right: int
    frames: int
    episodes: int
    classes: int

    def __str__(self) -> str:
        """Such as "61.2 % (1102/1800)"."""
        return f"{100 * self.right / self.frames:.1f} % ({self.right}/{self.frames})"


def probe_task(
    encoder: Encoder,
    frames: Frames,
    train: NDArray[np.int64],
    held_out: NDArray[np.int64],
    *,
    most: int = 4000,
) -> ProbeResult:
    """Tell the task of a frame from the mean class token, by ridge regression onto one-hot answers.

    The ridge is chosen on training episodes that are left out for it; features are standardised.

    Args:
        encoder: Frozen.
        frames: Frames that know their tasks.
        train: Indices of the frames to fit on; at most ``most``, evenly spread, are used.
        held_out: Indices of the frames to ask about, of other episodes.
        most: Bound on the training frames.

    Raises:
        DataError: If the frames do not know their tasks.
    """
    if frames.tasks is None:
        raise DataError("These frames do not say which task they show, so a task probe has nothing to learn.")
    train = train[np.linspace(0, len(train) - 1, min(most, len(train))).astype(np.int64)]
    labels = torch.from_numpy(frames.tasks)
    classes = int(labels.max()) + 1

    def right(answers: Tensor, rows: NDArray[np.int64]) -> int:
        return int((answers.argmax(dim=1) == labels[rows]).sum())

    read_out = fit_best(
        class_features(encoder, frames, train),
        F.one_hot(labels[train], classes).float(),
        frames.episodes[train],
        lambda answers, rows: right(answers, train[rows]),
    )
    put_right = right(read_out(class_features(encoder, frames, held_out)), held_out)
    return ProbeResult(put_right, len(held_out), len(np.unique(frames.episodes[held_out])), classes)


def class_features(encoder: Encoder, frames: Frames, indices: NDArray[np.int64], *, batch_size: int = 64) -> Tensor:
    """Encode whole frames at the encoder's native size: ``Tokens.summary`` of each, float32 [n d]."""
    looks = Look.through(encoder).tokens(frames, indices, batch_size=batch_size)
    return torch.cat([seen.summary for _, seen in looks])
