"""Ridge regression in closed form."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixio_pretrain.data import split_episodes

RIDGES = tuple(10.0**power for power in range(-2, 7))
"""The weights of the penalty that are tried; features have unit variance."""

_CHUNK = 8192

Score = Callable[[Tensor, NDArray[np.int64]], float]
"""How good the answers [m k] to some rows [m] are; more is better."""


@dataclass(frozen=True, slots=True)
class ReadOut:
    """A linear map from features to answers.

    Attributes:
        mean: Mean of the features [d].
        deviation: Their standard deviation [d].
        weights: [d k], for standardised features.
        offset: Mean of the answers [k].
        ridge: Weight of the penalty.
    """

    mean: Tensor
    deviation: Tensor
    weights: Tensor
    offset: Tensor
    ridge: float

    def __call__(self, x: Tensor) -> Tensor:
        """Answer features [n d]: [n k], float32."""
        return ((x - self.mean) / self.deviation) @ self.weights + self.offset


def fit(x: Tensor, y: Tensor, ridges: Sequence[float]) -> list[ReadOut]:
    """Fit answers y [n k] to features x [n d], once for each penalty.

    Solves the smaller of the two normal equations, d x d or n x n, in float64: with small penalties the squared
    features of a wide grid are singular in float32. No float64 copy of many rows is made.
    """
    mean, deviation, offset = x.mean(dim=0), x.std(dim=0) + 1e-6, y.mean(dim=0)
    n, d = x.shape
    if d <= n:
        gram, right = x.new_zeros(d, d, dtype=torch.float64), x.new_zeros(d, y.shape[1], dtype=torch.float64)
        for rows, answers in zip(x.split(_CHUNK), y.split(_CHUNK), strict=True):
            z = ((rows - mean) / deviation).double()
            gram += z.T @ z
            right += z.T @ (answers - offset).double()
        back = None
    else:
        back = ((x - mean) / deviation).double()
        gram, right = back @ back.T, (y - offset).double()
    found = []
    for ridge in ridges:
        factor = torch.linalg.cholesky(gram + ridge * torch.eye(len(gram), dtype=gram.dtype))
        solution = torch.cholesky_solve(right, factor)
        weights = solution if back is None else back.T @ solution
        found.append(ReadOut(mean, deviation, weights.float(), offset, ridge))
    return found


def fit_best(x: Tensor, y: Tensor, episodes: NDArray[np.integer[Any]], score: Score | None = None) -> ReadOut:
    """Fit with the penalty that does best on a fifth of the episodes, kept out to choose it; then fit to all.

    Args:
        x: Features [n d].
        y: Answers [n k].
        episodes: [n], the episode of each row; whole ones are kept out.
        score: Says what best means; the least squared error when absent.

    Raises:
        DataError: If there is only one episode.
    """
    inner, check = split_episodes(episodes, 0.2)
    score = score or (lambda answers, rows: -float((answers - y[rows]).square().mean()))
    tried = fit(x[inner], y[inner], RIDGES)
    best = max(tried, key=lambda read_out: score(read_out(x[check]), check))
    return fit(x, y, [best.ridge])[0]
