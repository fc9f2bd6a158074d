"""Where cameras have got to that were knocked: points that view 0 sees are found in the other views, poses follow."""

import math
from typing import NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from pixio_robot.geometry.cameras import base_rays, invert, pixel_centers, rays, resize_intrinsics, transform
from pixio_robot.geometry.matching import Cells, Told
from pixio_robot.geometry.pnp import look_at, refine_pose
from pixio_robot.nn import NORM_EPS, Block, initialize_blocks, no_autocast
from pixio_robot.tokens import Tokens

ROUNDS = 2
"""How often points are looked for, each time from where the pose found before puts them."""

REACH = 0.05, 6.0
"""Metres; landmarks that are nearer or farther are put there. The sky's depth is anything, and large."""

_CHANNELS = 32  # of what is compared
_LEVELS, _RADIUS = 3, 3  # windows of 7 x 7 cells, of a quarter, an eighth and a sixteenth of the picture's size
_WAVES = 6  # sines and cosines of a place
_FAR = 0.3  # what an answer of 1 moves a point by, as a part of the focal length
_DOUBT = -2.0  # a place begins with an inverse variance of 100 exp(-2): off by a quarter of the focal length


class Landmarks(NamedTuple):
    """What a depth head sees at the middle of each patch.

    Attributes:
        points: In the frame of the poses, metres [b n 3].
        said: All that the head says there, see ``SingleView`` [b n c].
    """

    points: Tensor
    said: Tensor


class Sighting(NamedTuple):
    """Where the landmarks of view 0 are in each other view, after a round; p = b * (v - 1) of them.

    Attributes:
        seen: As (x, y) of rays with z = 1 [p n 2].
        weights: How sure that is, as inverse variances [p n 2].
        world2cam: The pose that follows [p 4 4].
    """

    seen: Tensor
    weights: Tensor
    world2cam: Tensor


class DriftFinder(nn.Module):
    """Finds points of view 0 in the other views, and the poses from which they would be seen there.

    View 0's pose is exact, so its landmarks are known in metres. A drifted pose says about where another view sees
    each; a window around that place is compared with what the landmark looks like, as recurrent optical flow does
    (RAFT, arXiv 2003.12039, section 3.2). Attention over all landmarks and the other view's patches says how far off
    the place is and how sure that is, and the pose that fits best (``refine_pose``) puts the windows of the next round.
    What cannot be found leaves the pose as it was told.

    Args:
        encoder_width: Width of the encoder's tokens.
        reach: Degrees and metres that cameras drift at most.
        channels: Numbers that the depth head says of a landmark.
        width: Of its own tokens.
        depth: Blocks.
        heads: Attention heads.
    """

    def __init__(
        self,
        encoder_width: int,
        reach: tuple[float, float],
        *,
        channels: int,
        width: int = 128,
        depth: int = 2,
        heads: int = 4,
    ) -> None:
        super().__init__()
        # Of a length that is even from 0 to l and a direction that is anyhow, each of three parts deviates by l / 3.
        self.spread = math.radians(reach[0]) / 3, reach[1] / 3
        self.cells = Cells(encoder_width, _CHANNELS, detail=True, around=1)
        self.landmarks, self.patches = (nn.Linear(2 * encoder_width, width) for _ in range(2))
        self.places = nn.Linear(4 * _WAVES, width)
        self.rays, self.points = nn.Linear(6, width), nn.Linear(11 + channels, width)
        self.windows = nn.Sequential(
            nn.Linear(_LEVELS * (2 * _RADIUS + 1) ** 2, width), nn.GELU(), nn.Linear(width, width)
        )
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        initialize_blocks(self.blocks)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.out = nn.Linear(width, 4)  # how far off, and how surely, in x and y
        nn.init.normal_(self.out.weight, std=1e-3)
        nn.init.zeros_(self.out.bias)

    def forward(self, tokens: Tokens, told: Told, pixels: Tensor, landmarks: Landmarks) -> list[Sighting]:
        """Give what each round finds.

        Args:
            tokens: Of the views [b*v ...].
            told: Cameras; poses are exact for view 0 alone.
            pixels: The normalised images [b*v 3 h w].
            landmarks: Of view 0.
        """
        alike = self.compare(tokens, told, pixels)
        assert told.calibration is not None
        k, poses = told.calibration
        others, size, grid = told.views - 1, told.size, tokens.grid
        prior, k = invert(poses[:, 1:].flatten(0, 1)), k[:, 1:].flatten(0, 1)
        volumes = [alike]
        for _ in range(_LEVELS - 1):
            volumes.append(F.avg_pool2d(volumes[-1], 2, ceil_mode=True))
        mine, its = self._tokens(tokens, told)
        points, known, first = (repeat(part, "b ... -> (b v) ...", v=others) for part in (*landmarks, poses[:, 0]))
        origin = _origin(points, known, first)
        cells = rays(resize_intrinsics(k, size, grid), grid).flatten(1, 2)
        its = its + self.places(_waves(cells[..., :2]))
        found: list[Sighting] = []
        pose = prior
        for _ in range(ROUNDS):
            with no_autocast(alike.device):
                there = transform(pose, points[:, None])[:, 0]
                at = look_at(there)[0]
                windows = _windows(volumes, at, k, size)
                lines = base_rays(k, invert(pose), size, grid).flatten(2).mT
                whole = torch.cat([origin, there[..., 2:].clamp(min=REACH[0]).log()], dim=-1)
            asked = mine + self.points(whole) + self.places(_waves(at)) + self.windows(windows)
            x = torch.cat([asked, its + self.rays(lines)], dim=1)
            for block in self.blocks:
                x = block(x)
            with no_autocast(alike.device):
                off, sure = self.out(self.norm(x[:, : points.shape[1]].float())).split(2, dim=-1)
                seen, weights = at + _FAR * off, 100 * (2 * sure + _DOUBT).clamp(-14, 8).exp()
                pose = refine_pose(prior, points, seen, weights, self.spread)
            found.append(Sighting(seen, weights, pose))
            pose = pose.detach()
        return found

    def compare(self, tokens: Tokens, told: Told, pixels: Tensor) -> Tensor:
        """Say how alike view 0's landmarks and each cell of the other views look: cosines [p n h/4 w/4]."""
        cells = self.cells(self.cells.describe(tokens), pixels, told.size)
        cells = rearrange(cells, "(b v) c h w -> b v c h w", v=told.views)
        middles = _scaled(middles_of(told.size, tokens.grid, like=cells), told.size)
        with no_autocast(cells.device):
            mine = F.grid_sample(cells[:, 0], middles.expand(len(cells), -1, -1, -1), align_corners=False)
            alike = torch.einsum("bcrk,bvchw->bvrkhw", mine, cells[:, 1:])
        return rearrange(alike, "b v r k h w -> (b v) (r k) h w")

    def _tokens(self, tokens: Tokens, told: Told) -> tuple[Tensor, Tensor]:
        """Embed view 0's patches and each other view's [p n d]."""
        whole = torch.cat([tokens.patches, tokens.summary[:, None].expand_as(tokens.patches)], dim=-1)
        whole = rearrange(whole, "(b v) n d -> b v n d", v=told.views)
        mine = repeat(self.landmarks(whole[:, 0]), "b n d -> (b v) n d", v=told.views - 1)
        return mine, self.patches(whole[:, 1:].flatten(0, 1))


def middles_of(size: tuple[int, int], grid: tuple[int, int], *, like: Tensor) -> Tensor:
    """Give the pixel (x, y) in the middle of each patch [rows columns 2], as its centre's coordinates."""
    middles = pixel_centers(grid, like=like) * like.new_tensor([size[1] / grid[1], size[0] / grid[0]])
    return middles.floor() + 0.5


def _origin(points: Tensor, said: Tensor, poses: Tensor) -> Tensor:
    """Say where landmarks come from: the points, view 0's rays, depth there, and what the depth head says."""
    with no_autocast(points.device):
        depth = transform(invert(poses), points[:, None])[:, 0, :, 2:]
        origin = poses[:, None, :3, 3].expand_as(points)
        return torch.cat([points, origin, F.normalize(points - origin, dim=-1), depth, said], dim=-1)


def _scaled(places: Tensor, size: tuple[int, int]) -> Tensor:
    """Count places in pixels as ``grid_sample`` does: corners at +-1."""
    return 2 * places / places.new_tensor([size[1], size[0]]) - 1


def _waves(places: Tensor) -> Tensor:
    """Sines and cosines of places [... 2] of rays, from the width of a view down to a few pixels [... 4 * waves]."""
    rates = 1.5 * 2.0 ** torch.arange(_WAVES, device=places.device)
    angles = (places.clamp(-3, 3)[..., None] * rates).flatten(-2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _windows(volumes: list[Tensor], at: Tensor, k: Tensor, size: tuple[int, int]) -> Tensor:
    """Read volumes [p n h w] in windows around places [p n 2] of rays: [p n levels * window]."""
    focal = torch.stack([k[:, 0, 0], k[:, 1, 1]], dim=-1)
    pixels = at * focal[:, None] + k[:, None, :2, 2]
    steps = torch.arange(-_RADIUS, _RADIUS + 1.0, device=at.device)
    window = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1)
    read = []
    for volume in volumes:
        cell = at.new_tensor([size[1] / volume.shape[-1], size[0] / volume.shape[-2]])
        places = _scaled(pixels.flatten(0, 1)[:, None, None] + window * cell, size).clamp(-2, 2)
        level = F.grid_sample(volume.flatten(0, 1)[:, None], places, align_corners=False)
        read.append(level.view(*at.shape[:2], -1))
    return torch.cat(read, dim=-1)
