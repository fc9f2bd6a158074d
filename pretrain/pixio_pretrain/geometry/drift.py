"""Training of what finds drift: cameras are knocked, and each landmark's true place in the other view is known."""

from functools import cached_property

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
from pixio_robot.geometry.cameras import compose, invert, rotations, transform, unproject
from pixio_robot.geometry.drift import Landmarks, middles_of
from pixio_robot.geometry.heads import picture
from pixio_robot.geometry.matching import Told
from pixio_robot.geometry.multiview import MultiViewModel
from pixio_robot.geometry.pnp import look_at
from pixio_robot.nn import no_autocast

PLACES = 0.5
"""Weight of where landmarks are seen, beside the pose."""

_WITHIN = 1.5  # of rays with z = 1; places farther out are not learnt
_CHUNK = 64


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
        self._taps = Taps(model.encoder, frames, model.taps) if taps is None else taps

    def loss(self, rows: Rows, random: torch.Generator) -> dict[str, Tensor]:
        """Give the loss of some moments, each seen by two of its cameras, and its parts."""
        device = next(self.module.parameters()).device
        pairs = torch.stack([torch.randperm(self._frames.views, generator=random)[:2] for _ in rows]).numpy()
        frames = rows[:, None] * self._frames.views + pairs
        k, poses = (part.to(device).unflatten(0, frames.shape) for part in self._frames.calibration(frames.ravel()))
        drift = knocks(len(rows), random, *self.model.settings.drift).to(device)
        prior = torch.stack([poses[:, 0], compose(poses[:, 1], drift)], dim=1)
        told = Told(2, self._frames.size, k, prior, exact=False)
        tokens = self._taps(frames.ravel(), device)[-1]
        pixels = picture(self.model.encoder, self._frames.images(frames.ravel()), device)
        first = torch.from_numpy(frames[:, 0])
        found = self.module(tokens, told, pixels, Landmarks(*(part[first].to(device) for part in self._landmarks)))
        with no_autocast(device):
            at, counts = self._truth(frames[:, 0], poses, tokens.grid)
            parts = []
            for sighting in found:
                off = robust((sighting.seen - at).norm(dim=-1)[counts], c=0.03).mean()
                parts.append(torch.stack([PLACES * off, *pose_losses(invert(sighting.world2cam), poses[:, 1])]))
            mean = torch.stack(parts).mean(dim=0)
        return {"loss": mean.sum(), **dict(zip(("places", "rotation", "translation"), mean, strict=True))}

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

    def _truth(self, frames: Rows, poses: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Say where view 1 would see what is at the landmarks of view 0, and which of these places count.

        Args:
            frames: Of view 0 [b].
            poses: Of both views [b 2 4 4].
            grid: (rows, columns) of landmarks.

        Returns:
            (x, y) of rays with z = 1 [b n 2], and bool [b n]: there is such a place, not far out of the picture.
        """
        depth, k = (
            part.to(poses.device) for part in (self._frames.depths(frames), self._frames.calibration(frames)[0])
        )
        columns, rows = middles_of(self._frames.size, grid, like=depth).long().flatten(0, 1).unbind(-1)
        points = transform(compose(invert(poses[:, 1]), poses[:, 0]), unproject(depth, k))[:, rows, columns]
        at = look_at(points)[0]
        counts = is_valid(depth[:, rows, columns]) & (points[..., 2] > 0.1) & (at.abs() < _WITHIN).all(dim=-1)
        return at, counts


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
