"""The visual-feature adapter: tokens of a frozen encoder in, what a policy eats out.

The encoder's class tokens and its patches, pooled to a small grid, are normalised and projected to the policy's
width. Learned embeddings tell the policy which slot (class token or patch cell), camera and time step each token is.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from pixio_robot.errors import SettingError, UnknownNameError
from pixio_robot.nn import NORM_EPS
from pixio_robot.tokens import Tokens

ClassRead = Literal["each", "mean", "concat", "none"]
PatchRead = Literal["average", "merge", "attention", "spatial_softmax", "none"]


MEMORY = 10_000
"""Frames that the statistics of ``Standardize`` speak of: older ones fade, since an encoder that is trained changes."""


class Standardize(nn.Module):
    """Tokens less the mean of their slot, over the deviation of their channel: [... v s d], in float32 inside.

    Most of what a masked autoencoder's token says is where it is, because hidden patches are rebuilt from that; what is
    seen there is a small part of its variance, and a policy of few demonstrations learns from it slowly. Where lights
    or cameras change, what is made larger is no longer what training saw (``docs/results.md``).

    As the batch norm without scale before MAE's linear probe (arXiv 2111.06377, appendix A.1), but by the running
    statistics in training, too, so that no sample depends on its batch; in evaluation they stay as they are.

    Args:
        cameras: Number of cameras v.
        slots: Number of tokens s per camera.
        width: Token width d.
    """

    count: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, cameras: int, slots: int, width: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(cameras, slots, width))
        self.register_buffer("variance", torch.ones(cameras, 1, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Standardise; in training, after taking note of these tokens.

        Raises:
            SettingError: If a view has more or fewer tokens than it was built for.
        """
        if tokens.shape[-2] != self.mean.shape[-2]:
            raise SettingError(
                f"This adapter reads {self.mean.shape[-2]} patches per view (patch_count); it was given "
                f"{tokens.shape[-2]}."
            )
        if self.training:
            self._note(tokens.detach().float().flatten(0, -4))
        return ((tokens.float() - self.mean) * (self.variance + NORM_EPS).rsqrt()).to(tokens.dtype)

    @torch.no_grad()
    def _note(self, tokens: Tensor) -> None:
        """Merge the statistics of [b v s d] into the running ones (Chan et al. 1983)."""
        mean = tokens.mean(dim=0)
        variance = (tokens - mean).square().mean(dim=(0, 2)).unsqueeze(1)
        share = len(tokens) / (self.count + len(tokens))
        shift = mean - self.mean
        self.variance.lerp_(variance, share).add_(share * (1 - share) * shift.square().mean(dim=1, keepdim=True))
        self.mean.lerp_(mean, share)
        self.count.add_(len(tokens)).clamp_(max=MEMORY)


class AveragePool(nn.Module):
    """Patches averaged over a grid of equal cells, then projected: [... n d] -> [... grid*grid dim]."""

    def __init__(self, norm: nn.Module, width: int, dim: int, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.norm = norm
        self.project = nn.Linear(width, dim)

    def forward(self, tokens: Tokens) -> Tensor:
        """Pool the patches of ``tokens``; those that a cache pooled already stay as they are."""
        return self.project(self.norm(tokens.pool(self.grid).patches))


class MergePool(nn.Module):
    """Four neighbours side by side: [... n d] -> [... grid*grid dim].

    Patches are averaged over a grid twice as fine, and each 2 x 2 of its cells are projected together (patch merging,
    arXiv 2103.14030, section 3.1): as many tokens as an average over the coarse grid, and no more is lost than by one
    over the fine grid.
    """

    def __init__(self, norm: nn.Module, width: int, dim: int, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.norm = norm
        self.project = nn.Linear(4 * width, dim)

    def forward(self, tokens: Tokens) -> Tensor:
        """Pool the patches of ``tokens``; those that a cache pooled to the finer grid already stay as they are."""
        cells = self.norm(tokens.pool(2 * self.grid).patches)
        return self.project(rearrange(cells, "... (h p w q) d -> ... (h w) (p q d)", p=2, q=2, h=self.grid))


class AttentionPool(nn.Module):
    """Learned queries attend over the patches: [... n d] -> [... grid*grid dim]."""

    def __init__(self, norm: nn.Module, width: int, dim: int, grid: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(grid * grid, dim))
        self.norm = norm
        self.key = nn.Linear(width, dim)
        self.value = nn.Linear(width, dim)

    def forward(self, tokens: Tokens) -> Tensor:
        """Pool the patches of ``tokens``."""
        patches = self.norm(tokens.patches)
        keys, values = self.key(patches), self.value(patches)
        queries = self.queries.expand(*keys.shape[:-2], -1, -1)
        return F.scaled_dot_product_attention(queries, keys, values)


class SpatialSoftmax(nn.Module):
    """Keypoints: where each learned filter fires, and what is there (arXiv 1509.06113, section IV).

    Each of grid*grid filters scores the patches; the softmax over them gives an expected position, in [-1, 1] from
    the first to the last row and column, and an expected feature. [... n d] -> [... grid*grid dim].
    """

    def __init__(self, norm: nn.Module, width: int, dim: int, grid: int) -> None:
        super().__init__()
        self.norm = norm
        self.score = nn.Linear(width, grid * grid)
        self.project = nn.Linear(width + 2, dim)

    def forward(self, tokens: Tokens) -> Tensor:
        """Pool the patches of ``tokens``."""
        patches = self.norm(tokens.patches)
        weights = self.score(patches).softmax(dim=-2)  # ... n k
        sides = [torch.linspace(-1, 1, side).to(patches) for side in tokens.grid]
        positions = torch.stack(torch.meshgrid(*sides, indexing="ij"), dim=-1).flatten(0, 1)  # n 2
        positions = positions.expand(*patches.shape[:-1], 2)
        return self.project(weights.transpose(-2, -1) @ torch.cat([patches, positions], dim=-1))


PATCH_POOLS: dict[PatchRead, type[AveragePool | MergePool | AttentionPool | SpatialSoftmax]] = {
    "average": AveragePool,
    "merge": MergePool,
    "attention": AttentionPool,
    "spatial_softmax": SpatialSoftmax,
}


class VisualFeatureAdapter(nn.Module):
    """Turn encoder tokens of one or more cameras and time steps into a token sequence or one vector.

    Args:
        width: Token width d of the encoder.
        dim: Width of the output.
        cameras: Number of cameras v.
        steps: Number of time steps t.
        class_tokens: Number of class tokens c of the encoder.
        classes: "each" class token becomes a token, their "mean", their "concat"enation, or "none".
        patches: How patches are pooled: "average", "merge", "attention", "spatial_softmax", or "none".
        grid: Patches become grid*grid tokens per view.
        output: "tokens" for a sequence [b length dim]; "vector" for [b dim].
        standardize: Standardise tokens by what training saw in their slot (``Standardize``), for scenes that look as
            they did in training; else each token is normalised by itself, which stands other looks better.
        patch_count: Number of patches n of a view; needed to standardise for "attention" and "spatial_softmax", which
            read them one by one.

    Attributes:
        length: Number of tokens over all steps and cameras.

    Raises:
        SettingError: If the settings leave nothing to output, or lack ``patch_count``.
        UnknownNameError: If a choice does not exist.
    """

    def __init__(
        self,
        width: int,
        *,
        dim: int = 512,
        cameras: int = 1,
        steps: int = 1,
        class_tokens: int = 8,
        classes: ClassRead = "each",
        patches: PatchRead = "average",
        grid: int = 4,
        output: Literal["tokens", "vector"] = "tokens",
        standardize: bool = False,
        patch_count: int | None = None,
    ) -> None:
        super().__init__()
        _check_choice("way to read class tokens", classes, get_args(ClassRead))
        _check_choice("patch pooling", patches, get_args(PatchRead))
        _check_choice("adapter output", output, ["tokens", "vector"])
        if min(width, dim, cameras, steps, grid) < 1:
            raise SettingError("An adapter's width, dim, cameras, steps and grid must be at least 1.")
        self.width, self.cameras, self.steps, self.class_tokens = width, cameras, steps, class_tokens
        self.standardize, self.patch_count = standardize, patch_count
        self.classes = classes if class_tokens else "none"
        class_slots = {"each": class_tokens, "mean": 1, "concat": 1, "none": 0}[self.classes]
        slots = class_slots + (0 if patches == "none" else grid * grid)
        if slots == 0:
            raise SettingError("classes='none' and patches='none' leave the policy blind: keep one of them.")
        self.length = steps * cameras * slots

        # Side by side, many slots would make a wide vector; few of them need not be narrow.
        inner = dim if output == "tokens" else max(8, dim // min(8, slots))
        patch_slots = {"average": grid**2, "merge": 4 * grid**2, "none": 1}.get(patches, patch_count)
        if standardize and patch_slots is None:
            raise SettingError(
                f"patches={patches!r} reads the patches one by one: say how many a view has (patch_count=64 for 128 "
                "pixels in patches of 16), or leave them unstandardised (standardize=False)."
            )

        def norm(slots: int | None, width: int) -> nn.Module:
            return Standardize(cameras, slots, width) if standardize and slots else nn.LayerNorm(width, eps=NORM_EPS)

        class_width = width * class_tokens if self.classes == "concat" else width
        self.class_norm = norm(class_slots, class_width) if class_slots else nn.Identity()
        self.class_project = nn.Linear(class_width, inner) if class_slots else None
        self.patch_pool = (
            None if patches == "none" else PATCH_POOLS[patches](norm(patch_slots, width), width, inner, grid)
        )
        self.slot_embedding = nn.Parameter(0.02 * torch.randn(slots, inner))
        self.camera_embedding = nn.Parameter(0.02 * torch.randn(cameras, 1, inner))
        self.step_embedding = nn.Parameter(0.02 * torch.randn(steps, 1, 1, inner))
        self.to_vector = nn.Linear(self.length * inner, dim) if output == "vector" else None

    def forward(self, tokens: Sequence[Tokens]) -> Tensor:
        """Adapt the tokens of one observation.

        Args:
            tokens: One ``Tokens`` per camera, all of one grid; each [b n d], or [b t n d] with several steps.
                Patches may come averaged already, as a cache stores them, if the pooling is "average" or "merge".

        Returns:
            [b length dim], ordered by step, camera, class tokens, patches; or [b dim].

        Raises:
            SettingError: If the cameras, steps, patches or sizes are not those the adapter was built for.
        """
        views = self._stack(tokens)
        parts = []
        if self.class_project is not None:
            classes = views.classes  # b t v c d
            if self.classes == "mean":
                classes = classes.mean(dim=-2, keepdim=True)
            elif self.classes == "concat":
                classes = rearrange(classes, "b t v c d -> b t v 1 (c d)")
            parts.append(self.class_project(self.class_norm(classes)))
        if self.patch_pool is not None:
            parts.append(self.patch_pool(views))
        x = torch.cat(parts, dim=-2) + self.slot_embedding + self.camera_embedding + self.step_embedding
        if self.to_vector is not None:
            return self.to_vector(F.gelu(x.flatten(1)))
        return x.flatten(1, 3)

    def _stack(self, tokens: Sequence[Tokens]) -> Tokens:
        """Join the cameras: classes [b t v c d], patches [b t v n d]."""
        if isinstance(tokens, Tokens):
            raise SettingError("Pass a list with one Tokens per camera, [tokens] for a single camera.")
        if len(tokens) != self.cameras:
            raise SettingError(f"This adapter reads {self.cameras} cameras, not {len(tokens)}.")
        if len({view.grid for view in tokens}) > 1:
            raise SettingError(f"The cameras' grids differ: {[view.grid for view in tokens]}; encode them at one size.")

        def join(parts: list[Tensor]) -> Tensor:
            parts = [x.to(self.slot_embedding.dtype) for x in parts]  # first: autocast cannot stack what a cache holds
            parts = [repeat(x, "b n d -> b 1 n d") if x.ndim == 3 else x for x in parts]
            return torch.stack(parts, dim=2)

        views = Tokens(join([view.classes for view in tokens]), join([view.patches for view in tokens]), tokens[0].grid)
        found = (views.patches.shape[1], views.classes.shape[3], views.width)
        if found != (self.steps, self.class_tokens, self.width):
            raise SettingError(
                f"This adapter reads {self.steps} steps of {self.class_tokens} class tokens, {self.width} wide; "
                f"it was given {found[0]} steps of {found[1]}, {found[2]} wide."
            )
        return views


def _check_choice(kind: str, choice: str, known: Sequence[str]) -> None:
    if choice not in known:
        raise UnknownNameError(kind, choice, known)
