"""How much a linear read-out finds in frozen features: the quickest honest look at an encoder."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pixio_pretrain.data import Frames, split_episodes
from pixio_robot.encoder import Encoder
from pixio_robot.errors import DataError

RIDGES = (1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3)


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
    x, y = class_features(encoder, frames, train), F.one_hot(labels[train], classes).float()
    fit, check = split_episodes(frames.episodes[train], 0.2)
    ridge = max(RIDGES, key=lambda ridge: _score(x[fit], y[fit], x[check], labels[train][check], ridge))
    right = _score(x, y, class_features(encoder, frames, held_out), labels[held_out], ridge)
    return ProbeResult(right, len(held_out), len(np.unique(frames.episodes[held_out])), classes)


def class_features(encoder: Encoder, frames: Frames, indices: NDArray[np.int64], *, batch_size: int = 64) -> Tensor:
    """Encode whole frames at the encoder's native size: the mean of the class tokens, float32 [n d]."""
    side = encoder.spec.image_size
    found = []
    for chunk in np.array_split(indices, -(-len(indices) // batch_size)):
        images = np.stack([np.asarray(frames.image(index).resize((side, side))) for index in chunk])
        found.append(encoder(torch.from_numpy(images).permute(0, 3, 1, 2)).classes.float().mean(dim=1).cpu())
    return torch.cat(found)


def _score(x: Tensor, y: Tensor, x_test: Tensor, labels: Tensor, ridge: float) -> int:
    """Fit answers y [n k] to features x [n d], and count the test rows whose largest answer is the label."""
    mean, deviation = x.mean(dim=0), x.std(dim=0) + 1e-6
    x, x_test = (x - mean) / deviation, (x_test - mean) / deviation
    weights = torch.linalg.solve(x.T @ x + ridge * torch.eye(x.shape[1]), x.T @ (y - y.mean(dim=0)))
    return int(((x_test @ weights + y.mean(dim=0)).argmax(dim=1) == labels).sum())
