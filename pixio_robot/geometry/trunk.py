"""The trunk of the multi-view model: alternating attention over the tokens of all views, and the heads on it."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from pixio_robot.errors import SettingError
from pixio_robot.geometry.cameras import base_rays, compose
from pixio_robot.geometry.heads import DPT_PRESETS, LEVELS, DPTHead
from pixio_robot.geometry.sweep import plane_sweep, sweep_depths
from pixio_robot.nn import NORM_EPS, Block, initialize_blocks, no_autocast
from pixio_robot.tokens import Tokens

_RAYS = 7  # ray of a patch in the common frame: origin, direction, and whether it is known
_MATCHED = 32  # channels of what is compared in a plane sweep
_PRIOR = 0.5  # how well a ray is known whose pose is known roughly
_WIDEST = 2.0  # a predicted focal length is image width times exp of -2 to 2


@dataclass(frozen=True, kw_only=True, slots=True)
class MultiViewSettings:
    """Settings of a ``MultiViewModel``.

    Attributes:
        width: Of the trunk's tokens.
        depth: Blocks of the trunk, even: they attend over all views and within each, by turns.
        heads: Attention heads.
        head: Preset of the dense head, a key of ``DPT_PRESETS``.
        bins: Depths of the plane sweep.
        nearest: Metres; the first of them.
        farthest: Metres; the last of them, beyond which a plane counts as out of sight.
        support_heights: Metres; heights of planes z = constant, such as a table's. With poses given in that frame,
            depth leans on them as "support" of ``DepthSettings`` does.
        detail: See the pictures, too: the dense head as a ``DPTHead`` with ``detail`` does, and the plane sweep at a
            quarter of their size, where parallax is many cells and not a fraction of a patch.
    """

    width: int = 192
    depth: int = 4
    heads: int = 6
    head: str = "tiny"
    bins: int = 24
    nearest: float = 0.2
    farthest: float = 4.0
    support_heights: tuple[float, ...] = ()
    detail: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "support_heights", tuple(map(float, self.support_heights)))  # JSON knows no tuples
        if self.width % self.heads or self.depth < LEVELS - 1 or self.depth % 2:
            raise SettingError(
                f"width={self.width}, heads={self.heads}, depth={self.depth}: heads must divide the width, and depth "
                f"must be even and at least {LEVELS}."
            )
        if self.head not in DPT_PRESETS or self.bins < 2 or not 0 < self.nearest < self.farthest:
            raise SettingError(
                f"head={self.head!r} must be of {', '.join(DPT_PRESETS)}; bins={self.bins} at least 2; and nearest="
                f"{self.nearest} above 0 and below farthest={self.farthest}."
            )


class Cameras(NamedTuple):
    """What the trunk makes of the cameras.

    Attributes:
        cam2world: Poses [b v 4 4]: in the frame of view 0, in units of the scene's scale; or, where poses were roughly
            known, in their frame and in metres.
        log_focal: Log of focal length over image width [b v].
    """

    cam2world: Tensor
    log_focal: Tensor


class Trunk(nn.Module):
    """Alternating attention over the tokens of all views and of each, and the heads.

    Args:
        encoder_width: Width of the encoder's tokens.
        settings: See ``MultiViewSettings``.
    """

    def __init__(self, encoder_width: int, settings: MultiViewSettings) -> None:
        super().__init__()
        d = settings.width
        self.settings = settings
        self.embed = nn.Linear(2 * encoder_width, d)
        self.match = nn.Linear(encoder_width, _MATCHED)
        self.match_pixels = _quarter(_MATCHED) if settings.detail else None
        self.camera_rays, self.world_rays = nn.Linear(4, d), nn.Linear(_RAYS, d)
        self.swept = nn.Linear(settings.bins, d)
        self.scale_token = nn.Parameter(0.02 * torch.randn(1, 1, d))
        self.reference = nn.Parameter(0.02 * torch.randn(2, d))  # view 0, and the others
        self.blocks = nn.ModuleList(Block(d, settings.heads) for _ in range(settings.depth))
        self.norm = nn.LayerNorm(d, eps=NORM_EPS)
        initialize_blocks(self.blocks)
        self.dense = DPTHead(
            d,
            LEVELS,
            3 + len(settings.support_heights),  # depth, mask, confidence, planes
            preset=settings.head,
            readout="none",
            extra=settings.bins + _RAYS,
            detail=settings.detail,
            fine=settings.bins if settings.detail else 0,
        )
        # Rotation, translation as a share of the scale, focal length.
        self.pose = nn.Sequential(nn.Linear(2 * d, d), nn.GELU(), nn.Linear(d, 10))
        self.scale = nn.Sequential(nn.Linear(d, d), nn.GELU(), nn.Linear(d, 1))
        drift = nn.Linear(d, 9)
        nn.init.normal_(drift.weight, std=1e-3)  # starts with hardly any
        nn.init.zeros_(drift.bias)
        self.drift = nn.Sequential(nn.Linear(2 * d, d), nn.GELU(), drift)
        self.register_buffer(
            "depths", sweep_depths(settings.bins, nearest=settings.nearest, farthest=settings.farthest)
        )

    def forward(
        self,
        tokens: Tokens,
        views: int,
        size: tuple[int, int],
        intrinsics: Tensor | None,
        cam2world: Tensor | None,
        pixels: Tensor | None = None,
        *,
        exact: bool = True,
    ) -> tuple[Tensor, Cameras, Tensor]:
        """Give dense numbers [b v c h w], cameras, and log scale [b].

        Args:
            tokens: Of the views [b*v ...].
            views: v.
            size: (height, width) of the images in pixels.
            intrinsics: [b v 3 3], if they are known.
            cam2world: [b v 4 4], if they are known.
            pixels: The normalised images [b*v 3 h w], which a trunk with ``detail`` looks at.
            exact: Whether ``cam2world`` is; otherwise the cameras that are given back correct it, but for view 0's.
        """
        grid = tokens.grid
        patches = rearrange(tokens.patches, "(b v) n d -> b v n d", v=views)
        source = tokens.classes if tokens.classes.shape[1] else tokens.patches
        summary = rearrange(source.mean(dim=1), "(b v) d -> b v 1 d", v=views).expand_as(patches)
        world, swept = self._calibrated(patches, grid, size, intrinsics, cam2world, exact=exact)
        x = self.embed(torch.cat([patches, summary], dim=-1))
        x = x + self.camera_rays(self._camera(patches, grid, size, intrinsics)) + self.world_rays(world)
        x = x + self.swept(swept)
        x = x + self.reference[[0] + [1] * (views - 1)][:, None]
        levels, scale = [x], self.scale_token.expand(len(x), -1, -1).to(x.dtype)
        for number, block in enumerate(self.blocks):
            if number % 2 == 0:
                mixed = block(torch.cat([scale, rearrange(x, "b v n d -> b (v n) d")], dim=1))
                scale, x = mixed[:, :1], rearrange(mixed[:, 1:], "b (v n) d -> b v n d", v=views)
            else:
                x = rearrange(block(rearrange(x, "b v n d -> (b v) n d")), "(b v) n d -> b v n d", v=views)
            levels.append(x)
        count = len(self.blocks)
        chosen = [0, count // 2 - 1, count // 2 + 1, count]
        taps = [
            Tokens(x.new_zeros(len(x) * views, 0, x.shape[-1]), self.norm(levels[level]).flatten(0, 1), grid)
            for level in chosen
        ]
        extra = rearrange(torch.cat([swept, world], dim=-1), "b v (h w) c -> (b v) c h w", h=grid[0])
        fine = None if pixels is None else self._sweep_pixels(patches, grid, size, intrinsics, cam2world, pixels)
        dense = rearrange(self.dense(taps, size, extra, pixels, fine), "(b v) c h w -> b v c h w", v=views)
        with no_autocast(x.device):
            pooled = self.norm(x.float()).mean(dim=2)
            pairs = torch.cat([pooled, pooled[:, :1].expand_as(pooled)], dim=-1)
            found = self._cameras(pairs, cam2world if not exact else None)
            log_scale = self.scale(self.norm(scale.float()))[:, 0, 0]
        return dense, found, log_scale

    def _camera(
        self, patches: Tensor, grid: tuple[int, int], size: tuple[int, int], intrinsics: Tensor | None
    ) -> Tensor:
        """Each patch's ray in its camera's frame, and whether it is known [b v n 4]."""
        if intrinsics is None:
            return patches.new_zeros(*patches.shape[:3], 4)
        origin = torch.eye(4, device=patches.device).expand(intrinsics[:, :, 0].numel() // 3, 4, 4)
        found = base_rays(intrinsics.float().flatten(0, 1), origin, size, grid)[:, 3:]
        found = torch.cat([found, torch.ones_like(found[:, :1])], dim=1)
        return rearrange(found, "(b v) c h w -> b v (h w) c", v=patches.shape[1])

    def _calibrated(
        self,
        patches: Tensor,
        grid: tuple[int, int],
        size: tuple[int, int],
        intrinsics: Tensor | None,
        cam2world: Tensor | None,
        *,
        exact: bool,
    ) -> tuple[Tensor, Tensor]:
        """Each patch's ray in the common frame [b v n 7], and its plane sweep [b v n bins]; zeros if unknown."""
        b, v, n, _ = patches.shape
        if intrinsics is None or cam2world is None:
            return patches.new_zeros(b, v, n, _RAYS), patches.new_zeros(b, v, n, self.settings.bins)
        k, poses = intrinsics.float(), cam2world.float()
        world = base_rays(k.flatten(0, 1), poses.flatten(0, 1), size, grid)
        world = torch.cat([world, torch.full_like(world[:, :1], 1.0 if exact else _PRIOR)], dim=1)
        features = F.normalize(self.match(patches).float(), dim=-1)
        assert isinstance(self.depths, Tensor)
        swept = plane_sweep(features, grid, k, poses, size, self.depths)
        return (
            rearrange(world, "(b v) c h w -> b v (h w) c", v=v),
            rearrange(swept, "b v k h w -> b v (h w) k"),
        )

    def _sweep_pixels(
        self,
        patches: Tensor,
        grid: tuple[int, int],
        size: tuple[int, int],
        intrinsics: Tensor | None,
        cam2world: Tensor | None,
        pixels: Tensor,
    ) -> Tensor:
        """The plane sweep of what patches and pixels say together [b*v bins h/4 w/4]; zeros if poses are unknown."""
        assert self.match_pixels is not None
        assert isinstance(self.depths, Tensor)
        seen = self.match_pixels(pixels).float()
        if intrinsics is None or cam2world is None:
            return seen.new_zeros(len(seen), self.settings.bins, *seen.shape[-2:])
        known = rearrange(self.match(patches), "b v (h w) c -> (b v) c h w", h=grid[0]).float()
        seen = seen + F.interpolate(known, size=seen.shape[-2:], mode="bilinear", align_corners=False)
        features = rearrange(F.normalize(seen, dim=1), "(b v) c h w -> b v (h w) c", v=patches.shape[1])
        fine = (seen.shape[-2], seen.shape[-1])
        swept = plane_sweep(features, fine, intrinsics.float(), cam2world.float(), size, self.depths)
        return swept.flatten(0, 1)

    def _cameras(self, pairs: Tensor, prior: Tensor | None) -> Cameras:
        """Read cameras from each view's and view 0's mean token [b v 2d]; view 0's is the identity, or the prior's."""
        said = self.pose(pairs)
        poses = _rigid(said) if prior is None else _rigid(self.drift(pairs))
        poses = torch.cat([torch.eye(4, device=said.device).expand_as(poses[:, :1]), poses[:, 1:]], dim=1)
        return Cameras(poses if prior is None else compose(prior.float(), poses), _WIDEST * said[..., 9].tanh())


def _rigid(said: Tensor) -> Tensor:
    """Make poses [b v 4 4] of two axes (arXiv 1812.07035) and a translation [b v 9]; zeros are the identity."""
    first = F.normalize(said[..., :3] + said.new_tensor([1.0, 0, 0]), dim=-1)
    second = said[..., 3:6] + said.new_tensor([0, 1.0, 0])
    second = F.normalize(second - (first * second).sum(dim=-1, keepdim=True) * first, dim=-1)
    rotation = torch.stack([first, second, torch.linalg.cross(first, second)], dim=-1)
    poses = torch.cat([rotation, said[..., 6:9, None]], dim=-1)
    bottom = repeat(said.new_tensor([0, 0, 0, 1.0]), "k -> b v 1 k", b=said.shape[0], v=said.shape[1])
    return torch.cat([poses, bottom], dim=-2)


def _quarter(channels: int, width: int = 16) -> nn.Sequential:
    """Small convolutions that give a map at a quarter of a picture's size."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(width, channels, 3, stride=2, padding=1)
    )


def pinhole(log_focal: Tensor, size: tuple[int, int]) -> Tensor:
    """Make intrinsics [b v 3 3] of square pixels and a centred principal point from log(focal length / width)."""
    focal = size[1] * log_focal.exp()
    zero, one = torch.zeros_like(focal), torch.ones_like(focal)
    x, y = one * size[1] / 2, one * size[0] / 2
    return torch.stack([focal, zero, x, zero, focal, y, zero, zero, one], dim=-1).unflatten(-1, (3, 3))
