"""Linear probes of simulated frames, each solved to its optimum: no schedule, no chance."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixio_pretrain.evaluation.simulator.answers import CLASSES, THINGS, Answers, join
from pixio_pretrain.evaluation.simulator.features import SeenFrames
from pixio_pretrain.geometry.mono import FARTHEST, NEAREST
from pixio_pretrain.probe.depth import DepthReadOut
from pixio_pretrain.probe.labels import LabelReadOut
from pixio_pretrain.probe.ridge import ReadOut, fit_best
from pixio_robot.tokens import Tokens

_CHUNK = 64


@dataclass(frozen=True, kw_only=True)
class LinearProbes:
    """A linear map for each question.

    Depth and labels are read from patches, by the same map at every place of the picture; positions and poses from one
    vector per frame. All but the labels' are ridge regressions, whose penalty is chosen on a fifth of the scenes.

    Attributes:
        depth: Patches to depth.
        labels: Patches to classes.
        pixels: Vector to places in the picture, by thing.
        metres: Vector to places before the camera, by thing.
        origin: Vector to the camera's place.
        rotation: Vector to nine entries of its rotation.
    """

    depth: DepthReadOut
    labels: LabelReadOut
    pixels: Mapping[str, ReadOut]
    metres: Mapping[str, ReadOut]
    origin: ReadOut
    rotation: ReadOut

    @classmethod
    def fit(
        cls, seen: SeenFrames, true: Answers, scenes: NDArray[np.integer], rows: Tensor, *, dense_frames: int
    ) -> Self:
        """Fit to training frames.

        Args:
            seen: The training set.
            true: What it shows.
            scenes: The scene of each of its frames.
            rows: Frames to fit to [m].
            dense_frames: Bound on those that depth and labels are learnt from, evenly spread over ``rows``.
        """
        dense = rows[torch.linspace(0, len(rows) - 1, min(dense_frames, len(rows))).long()]
        patches = seen.patches(dense)
        depth = DepthReadOut.fit(
            patches, seen.grid, true.depth[dense], scenes[dense.numpy()], counted=(NEAREST, FARTHEST)
        )
        labels = LabelReadOut.fit(patches, seen.grid, true.labels[dense], len(CLASSES))
        del patches
        vectors = torch.cat([seen.vectors(part) for part in rows.split(_CHUNK)])

        def solve(answers: Tensor) -> ReadOut:
            known = answers[rows].isfinite().all(dim=1)
            return fit_best(vectors[known], answers[rows[known]], scenes[rows[known].numpy()])

        return cls(
            depth=depth,
            labels=labels,
            pixels={name: solve(true.pixels[name]) for name in THINGS},
            metres={name: solve(true.metres[name]) for name in THINGS},
            origin=solve(true.cam2world[:, :3, 3]),
            rotation=solve(true.cam2world[:, :3, :3].flatten(1)),
        )

    def __call__(self, seen: SeenFrames) -> Answers:
        """Read every frame of a set."""
        return join([self._read(seen, rows) for rows in torch.arange(len(seen.table)).split(_CHUNK)])

    def _read(self, seen: SeenFrames, rows: Tensor) -> Answers:
        patches, vectors = seen.patches(rows), seen.vectors(rows)
        tokens = Tokens(patches[:, :0], patches, seen.grid)
        return Answers(
            depth=self.depth(tokens),
            labels=self.labels(tokens),
            pixels={name: read_out(vectors) for name, read_out in self.pixels.items()},
            metres={name: read_out(vectors) for name, read_out in self.metres.items()},
            cam2world=pose_of(self.origin(vectors), self.rotation(vectors)),
        )


def pose_of(origin: Tensor, entries: Tensor) -> Tensor:
    """Make poses [b 4 4] of places [b 3] and nine numbers [b 9]: the nearest rotation (arXiv 2006.14616, eq. 1)."""
    u, _, v = torch.linalg.svd(entries.double().unflatten(1, (3, 3)))
    u = torch.cat([u[:, :, :2], u[:, :, 2:] * torch.det(u @ v)[:, None, None]], dim=2)
    poses = torch.eye(4).repeat(len(origin), 1, 1)
    poses[:, :3, :3], poses[:, :3, 3] = (u @ v).float(), origin
    return poses
