"""Dense descriptors (arXiv 1806.08756): a point of one view is known again in another, among that view's other points.

The contrastive form is PixContrast's (arXiv 2011.10043, equation 1), with one positive for each point and chosen points
in place of all cells. Points are those of things that move, as in dense object nets, but small ones as often as large
ones; from the rest they are only told apart, so that descriptors are spent on what a policy acts on.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pixio_pretrain.components import component_colors
from pixio_pretrain.data.looks import look_twice
from pixio_pretrain.data.samples import Batch, SampleMaker
from pixio_pretrain.data.source import Source
from pixio_pretrain.data.warps import make_warped_pair
from pixio_pretrain.objectives.base import Objective, ObjectiveConfig
from pixio_pretrain.objectives.masking import check_native
from pixio_robot.descriptors import DescriptorNet
from pixio_robot.encoder import DESCRIPTORS, Encoder
from pixio_robot.errors import ImageError, SettingError
from pixio_robot.images import normalize
from pixio_robot.nn import no_autocast

_NEVER = -1e4  # a logit that no softmax gives anything to, in any precision


@dataclass(kw_only=True)
class DescriptorsConfig(ObjectiveConfig):
    """Settings of dense descriptors.

    Attributes:
        image_size: Side of the views in pixels.
        points: Points of a scene that are compared.
        share: Of the points, on what moves; the others only serve to tell these from.
        paste: Chance of a view to have another picture's background.
        turn: Degrees that a view turns at most; how far it zooms, ``views.crop_scale`` says.
        temperature: Divides the cosines.
        near: Points that are closer than this, in pixels, are not told apart.
    """

    name: str = "descriptors"
    image_size: int = 128
    points: int = 192
    share: float = 0.67
    paste: float = 0.4
    turn: float = 30.0
    temperature: float = 0.07
    near: float = 4.0

    def build(self) -> "Descriptors":
        """Build the model.

        Raises:
            SettingError: If settings cannot be.
        """
        if self.image_size % DESCRIPTORS.patch_size or self.image_size < 8 * DESCRIPTORS.patch_size:
            raise SettingError(f"image_size={self.image_size} must be even, and 16 at least.")
        if self.points < 2 or self.temperature <= 0 or self.near < 0 or not 0 <= self.turn <= 180:
            raise SettingError("points must be at least 2, temperature above 0, near at least 0, and turn in [0, 180].")
        if not 0 < self.share <= 1 or not 0 <= self.paste <= 1:
            raise SettingError(f"share={self.share} must lie in (0, 1], and paste={self.paste} in [0, 1].")
        return Descriptors(self)


class DescriptorsOutput(NamedTuple):
    """What the objective says about a batch.

    Attributes:
        loss: Scalar, float32: minus the mean logarithm of the softmax at a point's twin.
        found: Share of the points whose twin is the most alike.
        maps: [b 2 d h w], the descriptors of both views.
    """

    loss: Tensor
    found: Tensor
    maps: Tensor


class Descriptors(Objective):
    """A small network whose descriptors of a point agree between views.

    Args:
        config: All settings.
    """

    loss_meaning = "minus the logarithm of the softmax of a point's cosines with the other view's points, at its twin"
    picture_meaning: ClassVar[str] = (
        "First view, its descriptors, second view, its descriptors; colours are the three directions in which the "
        "descriptors of all of them differ most:"
    )

    def __init__(self, config: DescriptorsConfig) -> None:
        super().__init__()
        self.config = config
        self.net = DescriptorNet()

    @property
    def image_size(self) -> int:
        """Side of the views in pixels."""
        return self.config.image_size

    @property
    def encoders(self) -> Mapping[str, Encoder]:
        """A frozen copy of the network as it is now."""
        spec = replace(DESCRIPTORS, image_size=self.image_size)
        return {"encoder": Encoder(spec, copy.deepcopy(self.net), provenance={"name": "descriptors"})}

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights."""
        self.net.initialize(generator)

    def prepare(self, source: Source) -> Source:
        """Let samples be made of two looks; errors as for ``look_twice``."""
        return look_twice(source)

    def samples(self, *, crop_scale: float) -> SampleMaker:
        """Two warped views and points of both; see ``make_warped_pair``."""
        config = self.config
        settings = {"turn": config.turn, "points": config.points, "share": config.share, "paste": config.paste}
        return partial(make_warped_pair, side=config.image_size, crop_scale=crop_scale, **settings)

    def forward(self, images: Tensor, points: Tensor, places: Tensor, things: Tensor) -> DescriptorsOutput:
        """Compare points across views.

        Args:
            images: RGB [b 2 3 s s], uint8 or float in [0, 1].
            points: [b 2 p 2], see ``make_warped_pair``.
            places: [b p 2].
            things: bool [b p].

        Raises:
            ImageError: If the images are of another shape, size or range.
            SettingError: If the points are of another shape.
        """
        if images.ndim != 5 or images.shape[1] != 2:
            raise ImageError(f"Pairs of views must be [b 2 3 h w], not {list(images.shape)}.")
        device, count = next(self.net.parameters()).device, places.shape[1]
        flat = images.flatten(0, 1)
        check_native(flat, self.image_size)
        if points.shape != (len(images), 2, count, 2) or things.shape != (len(images), count):
            raise SettingError(f"Points must be [b 2 p 2] and things [b p], not {points.shape} and {things.shape}.")
        points, places, things = points.to(device), places.to(device), things.to(device)
        pixels = normalize(flat.to(device), torch.float32, self.net.statistics)
        maps = self.net(pixels.contiguous(memory_format=torch.channels_last))
        with no_autocast(device):
            read = F.grid_sample(maps, points.flatten(0, 1).unsqueeze(1), align_corners=False)  # 2b d 1 p
            described = F.normalize(rearrange(read, "(b v) d 1 p -> b v p d", v=2), dim=-1)
            alike = described[:, 0] @ described[:, 1].transpose(1, 2) / self.config.temperature  # b p p
            loss, found = contrast(alike, *self._compared(points, places, things))
        return DescriptorsOutput(loss, found, maps.unflatten(0, (len(images), 2)))

    @torch.no_grad()
    def baselines(self, train: Iterable[Batch], held_out: Iterable[Batch]) -> dict[str, float]:
        """The held-out loss if all cosines were equal."""
        del train
        losses: list[float] = []
        for batch in held_out:
            compared = self._compared(batch["points"], batch["places"], batch["things"])
            count = len(batch["images"])
            equal = torch.zeros(count, self.config.points, self.config.points)
            losses += [contrast(equal, *compared)[0].item()] * count
        return {"all points alike": sum(losses) / len(losses)}

    @torch.no_grad()
    def picture(self, batch: Batch) -> Image.Image:
        """Four rows: the first views and what they are described as, then the second views."""
        maps, images = self(**batch).maps.cpu(), batch["images"].cpu()
        patches = rearrange(maps, "b v d h w -> (b v) (h w) d")
        colors = component_colors(patches).view(*maps.shape[:2], *maps.shape[-2:], 3)
        colors = (255 * colors).round().to(torch.uint8).repeat_interleave(2, 2).repeat_interleave(2, 3)
        views = images.permute(0, 1, 3, 4, 2)  # b v s s 3
        rows = [part[:, number] for number in range(2) for part in (views, colors)]
        return Image.fromarray(np.concatenate([np.concatenate(row.numpy(), axis=1) for row in rows]))

    def _compared(self, points: Tensor, places: Tensor, things: Tensor) -> tuple[Tensor, Tensor]:
        """Which pairs of points are told apart, bool [b p p], and which points count, bool [b p]."""
        seen = (points.abs() < 1).all(dim=-1).all(dim=1)  # b p, in both views
        pixels = places * self.image_size / 2
        near = torch.cdist(pixels, pixels) < self.config.near
        twins = torch.eye(near.shape[-1], dtype=torch.bool, device=near.device)
        return (~near | twins) & (seen[:, :, None] & seen[:, None]), things & seen


def contrast(logits: Tensor, compared: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Average the cross entropy of each point with its twin, in both directions, and say how many are found.

    Args:
        logits: [b p p], points of the first view by those of the second; twins lie on the diagonal.
        compared: bool [b p p], symmetric; whatever is not takes no part.
        counted: bool [b p], points whose twin is asked for. Without any, the loss is 0.

    Returns:
        Two scalars.
    """
    weights = counted.float()
    total = weights.sum().clamp(min=1)
    logits = logits.masked_fill(~compared, _NEVER)
    wanted = torch.arange(logits.shape[-1], device=logits.device).expand(logits.shape[:2])
    both = [F.cross_entropy(one.transpose(1, 2), wanted, reduction="none") for one in (logits, logits.transpose(1, 2))]
    loss = ((both[0] + both[1]) / 2 * weights).sum() / total
    return loss, ((logits.argmax(dim=-1) == wanted) * weights).sum() / total
