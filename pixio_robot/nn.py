"""The layers that every part of the house shares: one copy for pre-training, inference and evaluation.

Letters used for sizes in comments and docstrings, all over the library:

    b batch     t time step     v view (camera)     c class tokens     n patches     d width
    h w pixels (in images) or patches (in grids)    p patch side       a action

Parameter names are those of Meta's Pixio checkpoints, so weights move by key, never by a copied class.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.amp.autocast_mode import is_autocast_available
from torch.nn import functional as F

from pixio_robot.errors import SettingError
from pixio_robot.images import IMAGENET_STATISTICS, PixelStatistics
from pixio_robot.stems import STEMS
from pixio_robot.tokens import Tokens, take

NORM_EPS = 1e-6


def no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Compute in the precision of the operands; the meta device knows no other."""
    if not is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection, rows ordered query, key, value."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens: [b n d] -> [b n d]."""
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        if x.device.type == "cpu" and q.requires_grad:
            # PyTorch's fused attention has a slow backward on CPU; for sequences this short, the plain form is faster.
            weights = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1)
            mixed = weights.to(v.dtype) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(b, n, d))


class MLP(nn.Module):
    """Two linear layers around an exact (erf) GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token: [b n d] -> [b n d]."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm transformer block.

    Args:
        width: Token width d.
        heads: Attention heads; must divide the width.
        mlp_ratio: Hidden width of the MLP as a multiple of d.
        drop_path: Probability of skipping each residual branch per sample while training (stochastic depth,
            arXiv 1603.09382).
    """

    def __init__(self, width: int, heads: int, *, mlp_ratio: int = 4, drop_path: float = 0.0) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = MLP(width, mlp_ratio * width)

    def forward(self, x: Tensor) -> Tensor:
        """Transform tokens: [b n d] -> [b n d]."""
        x = x + self._drop(self.attn(self.norm1(x)))
        return x + self._drop(self.mlp(self.norm2(x)))

    def _drop(self, branch: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0.0:
            return branch
        kept = branch.new_empty(branch.shape[0], 1, 1).bernoulli_(1 - self.drop_path)
        return branch * kept / (1 - self.drop_path)


def resize_positions(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resample a square table of patch positions to another grid, bicubically.

    As in Pixio: corners not aligned, no antialiasing, always in float32; a table that already fits is returned
    untouched, so the native size stays bit-exact.

    Args:
        positions: [1 n d] with n a square number, row-major.
        grid: Wanted (rows, columns) of patches.

    Returns:
        [1 rows*columns d], in the table's dtype.
    """
    _, n, d = positions.shape
    side = round(n**0.5)
    if grid == (side, side):
        return positions
    table = positions.float().view(1, side, side, d).permute(0, 3, 1, 2)  # 1 d side side
    table = F.interpolate(table, size=grid, mode="bicubic", align_corners=False)
    return table.permute(0, 2, 3, 1).reshape(1, grid[0] * grid[1], d).to(positions.dtype)


def sincos_positions(width: int, grid: int, class_tokens: int = 0) -> Tensor:
    """Build MAE's fixed position table: two-dimensional sines and cosines.

    The first half of the channels encodes the column and the second half the row; each half is [sin | cos] of the
    coordinate times 10000^(-k / (width / 4)), k = 0 .. width / 4 - 1 (arXiv 1706.03762, section 3.5, once per axis).

    Args:
        width: Token width d; a multiple of 4.
        grid: Patches per image side.
        class_tokens: Rows of zeros in front.

    Returns:
        float32 [1 c+n d], patches row-major.

    Raises:
        SettingError: If the width is not a multiple of 4.
    """
    if width % 4:
        raise SettingError(
            f"4 must divide the width of sin-cos positions, not {width}; nearest: {round(width / 4) * 4}."
        )
    rates = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * rates  # grid d/4
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # grid d/2
    columns, rows = axis.repeat(grid, 1), axis.repeat_interleave(grid, dim=0)
    table = F.pad(torch.cat([columns, rows], dim=1), (0, 0, class_tokens, 0))
    return table.float()[None]


class Backbone(nn.Module, ABC):
    """The network inside an encoder.

    Attributes:
        statistics: What its images are normalised by.
    """

    statistics: PixelStatistics = IMAGENET_STATISTICS

    @abstractmethod
    def tokens_after(self, images: Tensor, blocks: Sequence[int], *, norm: bool) -> list[Tokens]:
        """Encode normalised images [b 3 h w] and give the tokens after each of ``blocks``, counted from 0.

        The final norm, where there is one, is applied to each of them, or to none.
        """

    @abstractmethod
    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights."""


class VisionTransformer(Backbone):
    """The backbone of Pixio (arXiv 2512.15715, section 3) and of MAE (arXiv 2111.06377).

    Pixio has several class tokens and learned absolute positions; MAE's positions are fixed (``sincos_positions``).

    Args:
        family: "pixio" or "mae": which positions.
        width: Token width d.
        depth: Number of blocks.
        heads: Attention heads per block.
        patch_size: Patch side in pixels.
        image_size: Native image side in pixels; fixes the position table.
        class_tokens: Number of class tokens; they precede the patches and have positions of their own.
        mlp_ratio: Hidden width of each MLP as a multiple of d.
        stem: A key of ``STEMS``.
        drop_path: Stochastic depth of the last block; it grows linearly from 0 at the first.
    """

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        family: str = "pixio",
        patch_size: int = 16,
        image_size: int = 256,
        class_tokens: int = 8,
        mlp_ratio: int = 4,
        stem: str = "patch",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.family = family
        self.patch_size = patch_size
        self.class_tokens = class_tokens
        self.cls_token = nn.Parameter(torch.zeros(1, class_tokens, width))
        positions = torch.zeros(1, class_tokens + (image_size // patch_size) ** 2, width)
        self.pos_embed = nn.Parameter(positions, requires_grad=family != "mae")
        self.patch_embed = STEMS[stem](width, patch_size)
        rates = [drop_path * index / max(1, depth - 1) for index in range(depth)]
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio=mlp_ratio, drop_path=rate) for rate in rates)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.initialize()

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights as Pixio's pre-training does: Xavier for matrices, normal(0.02) for tokens."""
        self.patch_embed.initialize(generator)
        nn.init.normal_(self.cls_token, std=0.02, generator=generator)
        if self.family == "mae":
            grid = round((self.pos_embed.shape[1] - self.class_tokens) ** 0.5)
            self.pos_embed.copy_(sincos_positions(self.pos_embed.shape[2], grid, self.class_tokens))
        else:
            nn.init.normal_(self.pos_embed, std=0.02, generator=generator)
        initialize_blocks(self.blocks, generator)
        nn.init.ones_(self.norm.weight)
        nn.init.zeros_(self.norm.bias)

    def embed(self, images: Tensor, index: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Cut normalised images [b 3 h w] into class tokens [b c d] and patches [b n d], positions added.

        With ``index`` [b k], into the patches at these places only.
        """
        class_positions, patch_positions = self.pos_embed.split(
            [self.class_tokens, self.pos_embed.shape[1] - self.class_tokens], dim=1
        )
        patches, grid = self.patch_embed(images, index)
        positions = resize_positions(patch_positions, grid)
        patches = patches + (positions if index is None else take(positions.expand(len(images), -1, -1), index))
        classes = (self.cls_token + class_positions).expand(images.shape[0], -1, -1)  # len() exports as a constant
        return classes, patches

    def forward(self, images: Tensor) -> Tensor:
        """Encode normalised images [b 3 h w] into tokens [b c+n d], class tokens first, final norm applied."""
        return self.transform(torch.cat(self.embed(images), dim=1))

    def tokens_after(self, images: Tensor, blocks: Sequence[int], *, norm: bool) -> list[Tokens]:
        """Encode normalised images; see ``Backbone``."""
        grid = (images.shape[2] // self.patch_size, images.shape[3] // self.patch_size)
        x = torch.cat(self.embed(images), dim=1)
        found: dict[int, Tokens] = {}
        for index, block in enumerate(self.blocks[: max(blocks) + 1]):
            x = block(x)
            if index in blocks:
                out = self.norm(x) if norm else x
                found[index] = Tokens(out[:, : self.class_tokens], out[:, self.class_tokens :], grid)
        return [found[block] for block in blocks]

    def transform(self, x: Tensor) -> Tensor:
        """Run all blocks and the final norm on embedded tokens [b n d], whichever were kept."""
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


@torch.no_grad()
def initialize_blocks(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Draw the linear layers inside ``module`` from Xavier's uniform, zero their biases, reset the norms."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.LayerNorm):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
