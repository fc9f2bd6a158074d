"""Dense descriptors, and keypoints read from them: where in a picture the things are that a few demonstrations show.

A small convolutional network says of every second pixel what is seen there, so that one thing has one descriptor
wherever it is and whatever light falls on it (dense object nets, arXiv 1806.08756). Reference descriptors then find
their likes in any picture, and the mean place of these is a keypoint (arXiv 1909.06933).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from pixio_robot.errors import ImageError, SettingError
from pixio_robot.images import HALVES
from pixio_robot.nn import Backbone
from pixio_robot.tokens import Tokens

WIDTH = 24
"""Numbers of a descriptor."""

NUMBERS = 3
"""Of each keypoint: to the right and down, from -1 to 1, and the cosine of the best match."""

TEMPERATURE = 0.02
"""Divides the cosines before the softmax over all places."""

_FINE, _COARSE, _GROUPS = 32, 64, 4  # channels at half and at a quarter of the resolution; groups of each norm


class _Residual(nn.Module):
    """x + convolutions of x: [b d h w] -> [b d h w]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(_GROUPS, width)
        self.spatial = nn.Conv2d(width, width, 3, padding=1)
        self.mix = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(F.gelu(self.spatial(self.norm(x))))


class DescriptorNet(Backbone):
    """Normalised images to unit descriptors, one for each 2 x 2 pixels.

    What it sees of a picture at once is some 30 pixels wide: enough to tell things apart, and too little to tell where
    in the picture they are, which is for keypoints to say.

    Args:
        width: Numbers of a descriptor.
    """

    statistics = HALVES

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, _FINE, 5, stride=2, padding=2)
        self.fine = _Residual(_FINE)
        self.down = nn.Conv2d(_FINE, _COARSE, 3, stride=2, padding=1)
        self.coarse = nn.Sequential(_Residual(_COARSE), _Residual(_COARSE))
        self.up = nn.Conv2d(_COARSE, _FINE, 1)
        self.join = _Residual(_FINE)
        self.out = nn.Conv2d(_FINE, width, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Describe normalised images: [b 3 h w] -> [b width h/2 w/2], float32, of length 1 each."""
        fine = self.fine(F.gelu(self.stem(images)))
        coarse = self.up(self.coarse(F.gelu(self.down(fine))))
        x = self.join(fine + F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False))
        return F.normalize(self.out(x).float(), dim=1)

    def tokens_after(self, images: Tensor, blocks: Sequence[int], *, norm: bool) -> list[Tokens]:
        """Describe normalised images; see ``Backbone``."""
        del norm
        maps = self(images)
        patches = rearrange(maps, "b d h w -> b (h w) d").to(images.dtype)
        return [Tokens(patches[:, :0], patches, (maps.shape[2], maps.shape[3])) for _ in blocks]

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Draw convolutions as PyTorch does; biases start at 0."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_uniform_(layer.weight, a=5**0.5, generator=generator)
                nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]
            elif isinstance(layer, nn.GroupNorm):
                layer.reset_parameters()


class Found(NamedTuple):
    """Where the likes of some references are in some pictures, by a softmax over all places.

    Attributes:
        means: [b k 2], the mean place, from -1 to 1 to the right and down.
        spreads: [b k], the distance from it, root mean square.
        cosines: [b k], of the best match.
    """

    means: Tensor
    spreads: Tensor
    cosines: Tensor


def find(maps: Tensor, references: Tensor) -> Found:
    """Find references [k d] in descriptors [b d h w], both of length 1."""
    return _locate(compare(maps, references.unsqueeze(0)).squeeze(1))


def compare(maps: Tensor, references: Tensor) -> Tensor:
    """Cosines [b v k h w] of descriptors [b d h w] and v cameras' references [v k d], all of length 1."""
    return torch.einsum("bdhw,vkd->bvkhw", maps, references)


def camera_of(cosines: Tensor) -> Tensor:
    """Which camera [b] pictures are of, by cosines [b v k h w]: the one whose references find their likes best."""
    return cosines.amax(dim=(3, 4)).mean(dim=2).argmax(dim=1)


def _locate(cosines: Tensor) -> Found:
    """Say where cosines [b k h w] are high."""
    sides = [torch.linspace(-1, 1, side, device=cosines.device) for side in cosines.shape[2:]]
    places = torch.stack(torch.meshgrid(*sides, indexing="ij"), dim=-1).flip(-1).flatten(0, 1)  # n 2
    weights = (cosines.flatten(2) / TEMPERATURE).softmax(dim=-1)
    means, squares = weights @ places, weights @ places.square()  # b k 2
    spreads = (squares - means.square()).sum(dim=-1).clamp(min=0).sqrt()
    return Found(means, spreads, cosines.amax(dim=(2, 3)))


class KeypointNet(Backbone):
    """Where the likes of some references are: one token, the whole picture.

    Each camera has its own references, and those answer a picture whose likes are most alike in it on average: what
    another camera's things are taken for here would be noise. The others' numbers are 0.

    Args:
        width: ``NUMBERS`` times as many keypoints k.
        side: Pixels of a side of its pictures.
        cameras: How many cameras v have k / v references each; those that share references count as one.

    Attributes:
        net: Describes pictures.
        references: [v k/v d], descriptors of length 1.
    """

    statistics = HALVES

    def __init__(self, width: int, side: int, cameras: int) -> None:
        super().__init__()
        if width % (NUMBERS * cameras):
            raise SettingError(
                f"{cameras} cameras' keypoints have {NUMBERS} numbers each, which do not divide a width of {width}."
            )
        self.side = side
        self.net = DescriptorNet()
        self.references = nn.Parameter(torch.zeros(cameras, width // NUMBERS // cameras, WIDTH))

    def tokens_after(self, images: Tensor, blocks: Sequence[int], *, norm: bool) -> list[Tokens]:
        """Find the references in normalised images: patches [b 1 3k], x and y of every keypoint, then all cosines."""
        del norm
        if images.shape[-2:] != (self.side, self.side):
            raise ImageError(f"These keypoints are of pictures of {self.side} x {self.side} pixels.")
        cameras = len(self.references)
        cosines = compare(self.net(images), self.references.float())
        asked = camera_of(cosines)
        one = asked[:, None, None, None, None].expand(-1, 1, *cosines.shape[2:])
        found = _locate(cosines.gather(1, one).squeeze(1))  # of these alone, as the softmax is what costs
        own = F.one_hot(asked, cameras).to(cosines.dtype)  # b v
        places = torch.einsum("bv,bkc->bvkc", own, found.means)
        best = torch.einsum("bv,bk->bvk", own, found.cosines)
        patches = torch.cat([places.flatten(1), best.flatten(1)], dim=1).unsqueeze(1).to(images.dtype)
        return [Tokens(patches[:, :0], patches, (1, 1)) for _ in blocks]

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Draw the network and the references, which then mean nothing."""
        self.net.initialize(generator)
        self.references.copy_(F.normalize(torch.randn(self.references.shape, generator=generator), dim=-1))
