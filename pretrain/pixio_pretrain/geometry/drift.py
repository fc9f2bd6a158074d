"""Training of what finds drift: cameras are knocked, and each landmark's true place in the other view is known."""

from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from pixio_pretrain.geometry.losses import robust
from pixio_pretrain.geometry.mono import is_valid
from pixio_pretrain.geometry.sets import RgbdSet, Rows
from pixio_pretrain.geometry.taps import Taps
from pixio_robot.errors import SettingError
from pixio_robot.geometry.cameras import compose, invert, project, rotations, transform, unproject
from pixio_robot.geometry.drift import Landmarks, Sighting, middles_of
from pixio_robot.geometry.heads import picture
from pixio_robot.geometry.matching import Told
from pixio_robot.geometry.multiview import MultiViewModel
from pixio_robot.nn import no_autocast

MATCHES, PLACES = 0.5, 0.5
"""Weights of which cell shows a landmark, and of where it is, beside the pose."""

_SAME = 0.05  # log depth that a landmark may be off by and still be what is seen
_WITHIN = 1.5  # of rays with z = 1; places farther out are not learnt
_CHUNK = 64


class Truth(NamedTuple):
    """Where the landmarks of view 0 are in view 1.

    Attributes:
        at: As (x, y) of rays with z = 1 [b n 2].
        counts: Whether there is such a place, not far out of the picture [b n].
        cell: Which of the cells at a quarter of the picture's size shows it [b n].
        shown: Whether it does: it is inside, and nothing is before it [b n].
    """

    at: Tensor
    counts: Tensor
    cell: Tensor
    shown: Tensor


class DriftTask:
    """The finder of a ``MultiViewModel`` learns from pairs of views of the same moment, the second one knocked.

    Args:
        model: Its encoder and depth head stay as they are.
        frames: The set.
        taps: What the encoder says of its frames; asked here when absent.

    Attributes:
        module: The finder.
        samples: Moments.

    Raises:
        SettingError: The model has no depth head.
    """

    def __init__(self, model: MultiViewModel, frames: RgbdSet, taps: Taps | None = None) -> None:
        if model.finder is None:
            raise SettingError("Finding drift takes the depth of view 0: give the model a depth head.")
        self.model, self.samples, self._frames = model, len(frames) // frames.views, frames
        self.module: nn.Module = model.finder
        self._finder = model.finder
        self._taps = Taps(model.encoder, frames, model.taps) if taps is None else taps

    def loss(self, rows: Rows, random: torch.Generator) -> dict[str, Tensor]:
        """Give the loss of some moments, each seen by the same two cameras, and its parts."""
        device = self._finder.sharpness.device
        pair = torch.randperm(self._frames.views, generator=random)[:2].numpy()
        frames = rows[:, None] * self._frames.views + pair
        k, poses = (part.to(device).unflatten(0, frames.shape) for part in self._frames.calibration(frames.ravel()))
        drift = knocks(len(rows), random, *self.model.settings.drift).to(device)
        prior = torch.stack([poses[:, 0], compose(poses[:, 1], drift)], dim=1)
        told = Told(2, self._frames.size, k, prior, exact=False)
        tokens = self._taps(frames.ravel(), device)[-1]
        pixels = picture(self.model.encoder, self._frames.images(frames.ravel()), device)
        first = torch.from_numpy(frames[:, 0])
        known = Landmarks(*(part[first].to(device) for part in self._landmarks))
        alike = self._finder.compare(tokens, told, pixels)
        found = self._finder.search(alike, tokens, told, known)
        with no_autocast(device):
            truth = self._truth(frames, k, poses, (alike.shape[-2], alike.shape[-1]), tokens.grid)
            parts = self._losses(found, truth, poses[:, 1])
            logits = self._finder.sharpness * alike.flatten(2)[truth.shown]
            parts["matches"] = MATCHES * F.cross_entropy(logits, truth.cell[truth.shown])
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}

    @cached_property
    def _landmarks(self) -> Landmarks:
        """What the depth head sees in every frame, asked once."""
        device = next(self.module.parameters()).device
        rows, said = np.arange(len(self._frames)), []
        for part in tqdm(np.array_split(rows, -(-len(rows) // _CHUNK)), desc="landmarks", unit="batch", leave=False):
            k, poses = (one.to(device) for one in self._frames.calibration(part))
            tokens, images = self._taps(part, device), self._frames.images(part)
            said.append([one.cpu() for one in self.model.landmarks(tokens, k, poses, images)])
        return Landmarks(*(torch.cat(parts) for parts in zip(*said, strict=True)))

    def _truth(self, frames: Rows, k: Tensor, poses: Tensor, cells: tuple[int, int], grid: tuple[int, int]) -> Truth:
        size = self._frames.size
        depth = self._frames.depths(frames.ravel()).to(k.device).unflatten(0, frames.shape)
        columns, rows = middles_of(size, grid, like=depth).long().flatten(0, 1).unbind(-1)
        points = transform(poses[:, 0], unproject(depth[:, 0], k[:, 0]))[:, rows, columns]
        there = transform(invert(poses[:, 1]), points[:, None])
        at = there[:, 0, :, :2] / there[:, 0, :, 2:].clamp(min=0.05)
        pixels, far = (part[:, 0] for part in project(there, k[:, 1]))
        counts = is_valid(depth[:, 0, rows, columns]) & (far > 0.1) & (at.abs() < _WITHIN).all(dim=-1)
        limits = pixels.new_tensor([size[1], size[0]])
        inside = counts & (pixels >= 0).all(dim=-1) & (pixels < limits).all(dim=-1)
        x, y = pixels.nan_to_num().clamp(min=0).minimum(limits - 1).long().unbind(-1)
        seen = depth[:, 1].flatten(1).gather(1, y * size[1] + x)
        shown = inside & ((seen / far.clamp(min=0.1)).log().abs() < _SAME)
        cell = (y * cells[0] // size[0]) * cells[1] + x * cells[1] // size[1]
        return Truth(at, counts, cell, shown)

    def _losses(self, found: list[Sighting], truth: Truth, poses: Tensor) -> dict[str, Tensor]:
        """Mean over the rounds of errors of places, of rotations, and of translations."""
        parts = []
        for sighting in found:
            off = robust((sighting.seen - truth.at).norm(dim=-1)[truth.counts], c=0.03).mean()
            parts.append(torch.stack([PLACES * off, *pose_losses(invert(sighting.world2cam), poses)]))
        return dict(zip(("places", "rotation", "translation"), torch.stack(parts).mean(dim=0), strict=True))


def knocks(count: int, random: torch.Generator, degrees: float, metres: float) -> Tensor:
    """Draw what cameras are knocked by, up to so many degrees and metres: angle and way are even, axes anyhow.

    Returns:
        [count 4 4], to be applied in the camera's frame.
    """
    axes, ways = F.normalize(torch.randn(2, count, 3, generator=random), dim=-1)
    angles, lengths = torch.rand(2, count, 1, generator=random)
    drift = torch.eye(4).repeat(count, 1, 1)
    drift[:, :3, :3] = rotations(axes * torch.deg2rad(degrees * angles))
    drift[:, :3, 3] = metres * lengths * ways
    return drift


def pose_losses(said: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Errors of rotation and translation of poses [... 4 4]."""
    wrong = said - truth
    return robust(wrong[..., :3, :3].flatten(-2).norm(dim=-1)).mean(), robust(wrong[..., :3, 3].norm(dim=-1)).mean()
