"""The trunk of the multi-view model: alternating attention over the tokens of all views, and the heads on it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from pixio_robot.errors import SettingError
from pixio_robot.geometry.cameras import base_rays
from pixio_robot.geometry.depth import DepthSettings
from pixio_robot.geometry.heads import DPT_PRESETS, LEVELS, DPTHead
from pixio_robot.geometry.matching import RAYS, Matcher, SingleView, Told
from pixio_robot.nn import NORM_EPS, Block, initialize_blocks, no_autocast
from pixio_robot.tokens import Tokens

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
        farthest: Metres; the last of them, beyond which a plane counts as out of sight. With ``alone`` that leans on
            planes, it is that head's ``max_depth``.
        support_heights: Metres; heights of planes z = constant, such as a table's. With poses given in that frame,
            depth leans on them as "support" of ``DepthSettings`` does. With ``alone`` they are that head's.
        detail: See the pictures, too: the dense head as a ``DPTHead`` with ``detail`` does, and a plane sweep at a
            quarter of their size, where parallax is many cells and not a fraction of a patch. With ``alone`` there is
            that sweep anyway; then it only sees more.
        alone: Settings of a depth head that measures each view by itself where poses are known, so that the trunk has
            only its errors left to find: views are compared around what it says, and depth begins there.
        drift: Degrees and metres that cameras are knocked by at most, for a model that can find where they are now.
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
    alone: DepthSettings | None = None
    drift: tuple[float, float] = (15.0, 0.05)

    def __post_init__(self) -> None:
        object.__setattr__(self, "drift", tuple(map(float, self.drift)))
        object.__setattr__(self, "support_heights", tuple(map(float, self.support_heights)))
        if isinstance(self.alone, Mapping):  # JSON knows neither classes nor tuples
            object.__setattr__(self, "alone", DepthSettings(**self.alone))
        if self.alone is not None:
            self._follow(self.alone)
        if self.width % self.heads or self.depth < LEVELS or self.depth % 2:
            raise SettingError(
                f"width={self.width}, heads={self.heads}, depth={self.depth}: heads must divide the width, and depth "
                f"must be even and at least {LEVELS}."
            )
        if len(self.drift) != 2 or not (0 < self.drift[0] <= 90 and self.drift[1] > 0):
            raise SettingError(f"drift={self.drift} must be degrees, above 0 and up to 90, and metres above 0.")
        if self.head not in DPT_PRESETS or self.bins < 2 or not 0 < self.nearest < self.farthest:
            raise SettingError(
                f"head={self.head!r} must be of {', '.join(DPT_PRESETS)}; bins={self.bins} at least 2; and nearest="
                f"{self.nearest} above 0 and below farthest={self.farthest}."
            )

    def _follow(self, head: DepthSettings) -> None:
        """Lean on the planes that the head for single views leans on."""
        if head.coding == "sigmoid":
            raise SettingError("A depth head coded as 'sigmoid' is for one camera: take 'canonical' or 'support'.")
        planes = head.support_heights if head.coding == "support" else ()
        if self.support_heights not in ((), planes):
            raise SettingError(f"support_heights={self.support_heights}, but the head for single views has {planes}.")
        object.__setattr__(self, "support_heights", planes)
        if planes:
            object.__setattr__(self, "farthest", head.max_depth)


class Cameras(NamedTuple):
    """What the trunk makes of the cameras.

    Attributes:
        cam2world: Poses [b v 4 4] in the frame of view 0, in units of the scene's scale.
        log_focal: Log of focal length over image width [b v].
    """

    cam2world: Tensor
    log_focal: Tensor


class Look(NamedTuple):
    """What the trunk sees before any dense head.

    Attributes:
        described: What is compared of patches [b*v c rows columns], see ``Matcher``.
        levels: Tokens [b v n d] before the first block and after each.
        calibrated: What known poses say of each patch: how alike views are along its ray, and the ray [b v n c].
        cameras: Predicted.
        log_scale: Log of the mean depth of view 0 [b].
    """

    described: Tensor
    levels: list[Tensor]
    calibrated: Tensor
    cameras: Cameras
    log_scale: Tensor


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
        self.matcher = Matcher(
            encoder_width,
            bins=settings.bins,
            nearest=settings.nearest,
            farthest=settings.farthest,
            detail=settings.detail,
            single_channels=settings.alone.channels if settings.alone else 0,
        )
        self.camera_rays, self.world_rays = nn.Linear(4, d), nn.Linear(RAYS, d)
        self.alone = nn.Linear(settings.alone.channels, d) if settings.alone else None
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
            extra=settings.bins + RAYS,
            detail=settings.detail,
            fine=self.matcher.fine,
        )
        # Rotation, translation as a share of the scale, focal length.
        self.pose = nn.Sequential(nn.Linear(2 * d, d), nn.GELU(), nn.Linear(d, 10))
        self.scale = nn.Sequential(nn.Linear(d, d), nn.GELU(), nn.Linear(d, 1))
        if settings.alone:  # begin with hardly any correction of what is good already
            assert self.dense.out.bias is not None
            nn.init.normal_(self.dense.out.weight, std=1e-3)
            nn.init.zeros_(self.dense.out.bias)

    def forward(
        self, tokens: Tokens, told: Told, pixels: Tensor | None = None, single: SingleView | None = None
    ) -> tuple[Tensor, Cameras, Tensor]:
        """Give dense numbers [b v c h w], cameras, and log scale [b].

        Args:
            tokens: Of the views [b*v ...].
            told: What is known of the cameras.
            pixels: The normalised images [b*v 3 h w], which a trunk with ``detail`` looks at.
            single: What a depth head says of each view, for a trunk that has one, where poses are known.
        """
        seen, grid, views = self._look(tokens, told, single), tokens.grid, told.views
        count = len(self.blocks)
        taps = []
        for level in (0, count // 2 - 1, count // 2 + 1, count):
            patches = self.norm(seen.levels[level]).flatten(0, 1)
            taps.append(Tokens(patches.new_zeros(len(patches), 0, patches.shape[-1]), patches, grid))
        extra = rearrange(seen.calibrated, "b v (h w) c -> (b v) c h w", h=grid[0])
        fine = self.matcher.compare_cells(seen.described, told, pixels, single)
        dense = rearrange(self.dense(taps, told.size, extra, pixels, fine), "(b v) c h w -> b v c h w", v=views)
        if single is not None:
            depth, rest = single.numbers[:, :, :1], single.numbers[:, :, 1:]
            dense = dense + torch.cat([depth, torch.zeros_like(depth), rest], dim=2)
        return dense, seen.cameras, seen.log_scale

    def _look(self, tokens: Tokens, told: Told, single: SingleView | None) -> Look:
        """See what needs no dense head; arguments are those of ``forward``."""
        grid, views = tokens.grid, told.views
        patches = rearrange(tokens.patches, "(b v) n d -> b v n d", v=views)
        summary = rearrange(tokens.summary, "(b v) d -> b v 1 d", v=views).expand_as(patches)
        described = self.matcher.cells.describe(tokens)
        world, swept = self.matcher.compare_patches(described, told)
        x = self.embed(torch.cat([patches, summary], dim=-1))
        x = x + self.camera_rays(self._camera(patches, grid, told)) + self.world_rays(world)
        x = x + self.swept(swept)
        x = x + self.reference[[0] + [1] * (views - 1)][:, None]
        if single is not None and self.alone is not None:
            x = x + self.alone(rearrange(single.maps(grid), "(b v) c h w -> b v (h w) c", v=views))
        levels, scale = self._attend(x)
        with no_autocast(x.device):
            pooled = self.norm(levels[-1].float()).mean(dim=2)
            pairs = torch.cat([pooled, pooled[:, :1].expand_as(pooled)], dim=-1)
            found = self._cameras(pairs)
            log_scale = self.scale(self.norm(scale.float()))[:, 0, 0]
        return Look(described, levels, torch.cat([swept, world], dim=-1), found, log_scale)

    def _attend(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Let patches [b v n d] see those of all views and of their own, by turns: all levels, and the scale token."""
        levels, scale = [x], self.scale_token.expand(len(x), -1, -1).to(x.dtype)
        for number, block in enumerate(self.blocks):
            if number % 2 == 0:
                mixed = block(torch.cat([scale, rearrange(x, "b v n d -> b (v n) d")], dim=1))
                scale, x = mixed[:, :1], rearrange(mixed[:, 1:], "b (v n) d -> b v n d", v=x.shape[1])
            else:
                x = rearrange(block(rearrange(x, "b v n d -> (b v) n d")), "(b v) n d -> b v n d", v=x.shape[1])
            levels.append(x)
        return levels, scale

    def _camera(self, patches: Tensor, grid: tuple[int, int], told: Told) -> Tensor:
        """Each patch's ray in its camera's frame, and whether it is known [b v n 4]."""
        if told.intrinsics is None:
            return patches.new_zeros(*patches.shape[:3], 4)
        k = told.intrinsics.float().flatten(0, 1)
        found = base_rays(k, torch.eye(4, device=patches.device).expand(len(k), 4, 4), told.size, grid)[:, 3:]
        found = torch.cat([found, torch.ones_like(found[:, :1])], dim=1)
        return rearrange(found, "(b v) c h w -> b v (h w) c", v=told.views)

    def _cameras(self, pairs: Tensor) -> Cameras:
        """Read cameras from each view's and view 0's mean token [b v 2d]; view 0's pose is the identity."""
        said = self.pose(pairs)
        poses = _rigid(said)
        poses = torch.cat([torch.eye(4, device=said.device).expand_as(poses[:, :1]), poses[:, 1:]], dim=1)
        return Cameras(poses, _WIDEST * said[..., 9].tanh())


def _rigid(said: Tensor) -> Tensor:
    """Make poses [b v 4 4] of two axes (arXiv 1812.07035) and a translation [b v 9]; zeros are the identity."""
    first = F.normalize(said[..., :3] + said.new_tensor([1.0, 0, 0]), dim=-1)
    second = said[..., 3:6] + said.new_tensor([0, 1.0, 0])
    second = F.normalize(second - (first * second).sum(dim=-1, keepdim=True) * first, dim=-1)
    rotation = torch.stack([first, second, torch.linalg.cross(first, second)], dim=-1)
    poses = torch.cat([rotation, said[..., 6:9, None]], dim=-1)
    bottom = repeat(said.new_tensor([0, 0, 0, 1.0]), "k -> b v 1 k", b=said.shape[0], v=said.shape[1])
    return torch.cat([poses, bottom], dim=-2)


def pinhole(log_focal: Tensor, size: tuple[int, int]) -> Tensor:
    """Make intrinsics [b v 3 3] of square pixels and a centred principal point from log(focal length / width)."""
    focal = size[1] * log_focal.exp()
    zero, one = torch.zeros_like(focal), torch.ones_like(focal)
    x, y = one * size[1] / 2, one * size[0] / 2
    return torch.stack([focal, zero, x, zero, focal, y, zero, zero, one], dim=-1).unflatten(-1, (3, 3))
