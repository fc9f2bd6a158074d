"""A small head on every patch of simulated frames: one hidden layer, trained for all questions at once."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import default_collate

from pixio_pretrain.evaluation.chance import seeded
from pixio_pretrain.evaluation.simulator.answers import CLASSES, THINGS, Answers, join
from pixio_pretrain.evaluation.simulator.features import SeenFrames
from pixio_pretrain.evaluation.simulator.linear import pose_of
from pixio_pretrain.geometry.mono import FARTHEST, NEAREST
from pixio_pretrain.probe.depth import is_valid, mean_log_depth, missing_depth, spread
from pixio_pretrain.probe.labels import choose, log_shares_of, patch_shares, prior_of

_CHUNK = 64
_PLACE = 5  # x, y, and three coordinates before the camera


class SmallHead(nn.Module):
    """One hidden layer, shared by all patches.

    Depth and classes correct the mean maps of the training frames, as linear probes do. A thing's position is an
    average over patches of their places, and of what they add to them, weighted by a softmax of the scores of its
    class; the camera's pose is read from the mean of the hidden layer. Positions and poses are in standard deviations
    of the training answers.

    Args:
        width: Numbers of a patch with its class token, 2d.
        hidden: Width of the hidden layer.
        prior: Log share of each class in each patch [n k].
        centres: Place of each patch, in each thing's deviations [t n 2].
    """

    prior: Tensor
    centres: Tensor

    def __init__(self, width: int, hidden: int, prior: Tensor, centres: Tensor) -> None:
        super().__init__()
        self.register_buffer("prior", prior)
        self.register_buffer("centres", centres)
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.layer = nn.Linear(width, hidden)
        self.dense = nn.Linear(hidden, 1 + len(CLASSES))
        self.things = nn.Linear(hidden, len(THINGS) * _PLACE)
        self.pose = nn.Linear(hidden, 12)

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Read patches [b n 2d]: depth and class scores [b n 5], places of things [b t 5], poses [b 12]."""
        x = F.gelu(self.layer(self.norm(patches.flatten(0, 1)).unflatten(0, patches.shape[:2])))
        dense = self.dense(x).float()
        scores = (self.prior + dense[..., 1:])[..., [CLASSES.index(name) for name in THINGS]]
        weights = scores.softmax(dim=1).transpose(1, 2)  # b t n
        said = self.things(x).float().unflatten(2, (len(THINGS), _PLACE)).transpose(1, 2)
        said = said + F.pad(self.centres.repeat(1, 1, 2), (0, 1))  # to the right in the picture is so before the camera
        return dense, (weights[..., None] * said).sum(dim=2), self.pose(x.mean(dim=1)).float()


class SmallProbes:
    """The head, what it learns from, and how its numbers become answers; see ``loop.Trainee``.

    Args:
        seen: The training set.
        true: What it shows.
        rows: Frames to learn from.
        seed: Draws the head.
        hidden: Width of the hidden layer.
    """

    def __init__(self, seen: SeenFrames, true: Answers, rows: Tensor, *, seed: int, hidden: int) -> None:
        self.seen, self.rows, self.samples, self.collate = seen, rows, len(rows), default_collate
        self.true = true.take(rows)
        valid = is_valid(self.true.depth, NEAREST, FARTHEST)
        self.mean_map = mean_log_depth(self.true.depth, valid)
        self.missing = missing_depth(self.true.depth, valid, self.mean_map, seen.grid)
        self.log_shares = log_shares_of(self.true.labels, len(CLASSES))
        self.shares = patch_shares(self.true.labels, seen.grid, len(CLASSES))
        places = [torch.cat([self.true.pixels[name], self.true.metres[name]], dim=1) for name in THINGS]
        self.places, self.place_mean, self.place_std = _standardised(torch.stack(places, dim=1))
        poses = torch.cat([self.true.cam2world[:, :3, 3], self.true.cam2world[:, :3, :3].flatten(1)], dim=1)
        self.poses, self.pose_mean, self.pose_std = _standardised(poses)
        h, w = self.mean_map.shape
        y, x = ((torch.arange(count) + 0.5) / count for count in seen.grid)
        middles = torch.stack([(x * w).repeat(len(y)), (y * h).repeat_interleave(len(x))], dim=1)
        centres = (middles - self.place_mean[:, None, :2]) / self.place_std[:, None, :2]
        with seeded(seed):
            self.module = SmallHead(2 * seen.table.shape[2], hidden, prior_of(self.log_shares, seen.grid), centres)

    def sample(self, index: int) -> Any:
        """A frame's patches, and its place among the training frames."""
        return self.seen.patches(self.rows[index, None])[0], index

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.module.parameters(), lr=0.0, weight_decay=0.05, fused=True)

    def loss(self, batch: Any) -> Tensor:
        """Error of log depth, cross-entropy of classes, and smooth errors of places and poses in deviations."""
        patches, index = batch
        device = next(self.module.parameters()).device
        dense, places, poses = self.module(patches.to(device))
        scores = self.module.prior + dense[..., 1:]
        labels = F.cross_entropy(scores.flatten(0, 1), self.shares[index].to(device).flatten(0, 1))
        depth = _known_loss(F.l1_loss, dense[..., 0], self.missing[index].to(device))
        where = _known_loss(F.smooth_l1_loss, places, self.places[index].to(device))
        return depth + labels + where + F.smooth_l1_loss(poses, self.poses[index].to(device))

    @torch.no_grad()
    def __call__(self, seen: SeenFrames) -> Answers:
        """Read every frame of a set."""
        self.module.eval()
        return join([self._read(seen.patches(rows), seen.grid) for rows in torch.arange(len(seen.table)).split(_CHUNK)])

    def _read(self, patches: Tensor, grid: tuple[int, int]) -> Answers:
        device = next(self.module.parameters()).device
        dense, places, poses = (part.cpu() for part in self.module(patches.to(device)))
        places = places * self.place_std + self.place_mean
        poses = poses * self.pose_std + self.pose_mean
        rest = spread(dense[..., :1], grid, self.mean_map.shape)[:, 0]
        return Answers(
            depth=(self.mean_map + rest).exp(),
            labels=choose(self.log_shares, dense[..., 1:], grid),
            pixels={name: places[:, number, :2] for number, name in enumerate(THINGS)},
            metres={name: places[:, number, 2:] for number, name in enumerate(THINGS)},
            cam2world=pose_of(poses[:, :3], poses[:, 3:]),
        )


def _known_loss(loss: Callable[..., Tensor], said: Tensor, wanted: Tensor) -> Tensor:
    """Average a loss over what is known; 0 where nothing is."""
    known = wanted.isfinite()
    return loss(said[known], wanted[known], reduction="sum") / known.sum().clamp(min=1)


def _standardised(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Less the mean, by the standard deviation, over what is known of the first dimension; and both of them."""
    known = values.isfinite()
    count, filled = known.sum(dim=0).clamp(min=1), torch.where(known, values, 0.0)
    mean = filled.sum(dim=0) / count
    std = (torch.where(known, values - mean, 0.0).square().sum(dim=0) / count).sqrt() + 1e-6
    return (values - mean) / std, mean, std
