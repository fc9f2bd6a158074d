"""What PixPro and PixContrast have in common (arXiv 2011.10043): two views, a momentum network, cells that meet."""

import math
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pixio_pretrain.data.pairs import make_pair
from pixio_pretrain.data.samples import Batch, SampleMaker
from pixio_pretrain.objectives.base import Objective
from pixio_pretrain.objectives.branches import Branch, PixelConfig
from pixio_pretrain.objectives.cells import cosines
from pixio_pretrain.objectives.masking import check_native
from pixio_pretrain.objectives.matches import draw_matches
from pixio_pretrain.objectives.propagation import initialize_heads, projection_head
from pixio_robot.encoder import Encoder
from pixio_robot.errors import ImageError, SettingError
from pixio_robot.images import normalize

Measure = Callable[[Tensor, Tensor, Tensor, tuple[int, int]], Tensor]
"""See ``PixelObjective.match``."""


class PixelOutput(NamedTuple):
    """What a pixel-level objective says about a batch. Levels are those of the pyramid, finest first; one without.

    Attributes:
        loss: Scalar, float32: ``pixel_loss + instance_weight * instance_loss``.
        pixel_loss: Scalar: the mean over levels.
        instance_loss: Scalar; 0 without the branch.
        predictions: For each level [b 2 d h w], of the network under training, for both views.
        keys: For each level [b 2 d h w], of the momentum network.
    """

    loss: Tensor
    pixel_loss: Tensor
    instance_loss: Tensor
    predictions: list[Tensor]
    keys: list[Tensor]


class PixelObjective(Objective):
    """A network that is to say the same of a place whichever view it sees it in, as its momentum twin says.

    The momentum network is never trained: ``before_step`` moves its parameters towards the trained ones. Its batch
    norms keep their own statistics.

    Args:
        config: All settings.

    Attributes:
        config: All settings.
        online: The network under training.
        target: The momentum network.
        predictor: The instance branch's second head, on the network under training only; None without the branch.
    """

    picture_meaning: ClassVar[str] = (
        "First view with one place marked; second view with the same place marked where it is in sight; how alike the "
        "second view's cells are to the prediction for that place, from black (least) to yellow (most):"
    )

    def __init__(self, config: PixelConfig) -> None:
        super().__init__()
        self.config = config
        self.online = Branch(config)
        self.target = Branch(replace(config, drop_path=0.0)).requires_grad_(False)
        width = config.projection_width
        self.predictor = projection_head(width, config.projection_hidden, width) if config.instance_weight else None

    @abstractmethod
    def predict(self, projection: Tensor) -> Tensor:
        """Turn a projection [b d h w] into what is compared with keys, [b d h w]."""

    @abstractmethod
    def match(self, alike: Tensor, boxes: Tensor, others: Tensor, grid: tuple[int, int]) -> Tensor:
        """Measure one view's predictions against the other view's keys.

        Args:
            alike: Cosines [b n n], predictions by keys.
            boxes: [b 4], where the predicting views lie in their images.
            others: [b 4], where the other views lie.
            grid: (rows, columns) of cells.

        Returns:
            Scalar loss, of which both directions' are added.
        """

    @abstractmethod
    def chances(self, output: PixelOutput, boxes: Tensor) -> dict[str, Tensor]:
        """Give, by name, pixel losses of a batch that call for no knowledge of places; boxes are [b 2 4]."""

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights; the momentum network starts as a copy."""
        self.online.initialize(generator)
        self.target.load_state_dict(self.online.state_dict())
        if self.predictor is not None:
            initialize_heads(self.predictor, generator)

    @property
    def image_size(self) -> int:
        """Side of the views in pixels."""
        return self.online.features.image_size

    @property
    def encoders(self) -> dict[str, Encoder]:
        """A frozen copy of the backbone as it is now."""
        return {"encoder": self.online.features.encoder(self.config.encoder)}

    @property
    def extra_weights(self) -> Mapping[str, dict[str, Tensor]]:
        """The pyramid's weights, in the layout of torchvision's ``FeaturePyramidNetwork``, if one is trained."""
        if self.online.fpn is None:
            return {}
        return {"fpn": {key: value.detach().clone() for key, value in self.online.fpn.state_dict().items()}}

    def samples(self, *, crop_scale: float) -> SampleMaker:
        """Two views, cut and augmented apart, and where they lie. PixPro's ``crop_scale`` is 0.08."""
        return partial(make_pair, side=self.image_size, crop_scale=crop_scale)

    @torch.no_grad()
    def before_step(self, step: int, steps: int) -> None:
        """Move the momentum network: its momentum rises from the config's at step 0 to 1 at the end."""
        change = (1 - self.config.momentum) * (math.cos(math.pi * step / steps) + 1) / 2
        for moved, trained in zip(self.target.parameters(), self.online.parameters(), strict=True):
            moved.lerp_(trained, change)

    def forward(self, images: Tensor, boxes: Tensor) -> PixelOutput:
        """Encode both views with both networks, and compare across views.

        Args:
            images: RGB [b 2 3 h w] of the native size, uint8 or float in [0, 1].
            boxes: float [b 2 4]; see ``make_pair``.

        Raises:
            ImageError: If the images are of another shape, size or range.
            SettingError: If the boxes are of another shape.
        """
        pixels, boxes = self._check(images, boxes)
        views = pixels.unbind(1)  # apart, so that batch norms see one view at a time
        (first, first_instance), (second, second_instance) = self.online(views[0]), self.online(views[1])
        with torch.no_grad():
            (first_keys, first_key), (second_keys, second_key) = self.target(views[0]), self.target(views[1])
        predictions = [
            torch.stack([self.predict(one), self.predict(other)], dim=1)
            for one, other in zip(first, second, strict=True)
        ]
        keys = [torch.stack(pair, dim=1) for pair in zip(first_keys, second_keys, strict=True)]
        pixel_loss = self.compare(predictions, keys, boxes, self.match)
        instance_loss = self._instance_loss(first_instance, second_key) + self._instance_loss(
            second_instance, first_key
        )
        loss = pixel_loss + self.config.instance_weight * instance_loss
        return PixelOutput(loss, pixel_loss, instance_loss, predictions, keys)

    def compare(self, predictions: list[Tensor], keys: list[Tensor], boxes: Tensor, measure: Measure) -> Tensor:
        """Add both directions' losses, as ``match`` or its like gives them; average over the levels."""
        losses = []
        for prediction, key in zip(predictions, keys, strict=True):
            grid = (key.shape[-2], key.shape[-1])
            for one, other in ((0, 1), (1, 0)):
                alike = cosines(prediction[:, one], key[:, other])
                losses.append(measure(alike, boxes[:, one], boxes[:, other], grid))
        return torch.stack(losses).sum() / len(keys)

    @torch.no_grad()
    def baselines(self, train: Iterable[Batch], held_out: Iterable[Batch]) -> dict[str, float]:
        """Held-out pixel losses that call for no knowledge of places; see ``chances``."""
        del train
        totals: defaultdict[str, float] = defaultdict(float)
        count = 0
        for batch in held_out:
            output = self(**batch)
            for name, loss in self.chances(output, batch["boxes"].to(output.loss.device)).items():
                totals[name] += loss.item() * len(batch["boxes"])
            count += len(batch["boxes"])
        return {name: total / count for name, total in totals.items()}

    @torch.no_grad()
    def picture(self, batch: Batch) -> Image.Image:
        """Three rows: the first views, the second views, and how alike these are to one place of the first."""
        output = self(**batch)
        first, second = output.predictions[0][:, 0], output.keys[0][:, 1]
        alike = cosines(first, second).unflatten(2, second.shape[-2:])  # b n h w
        return draw_matches(batch["images"].cpu(), batch["boxes"].cpu(), alike.cpu())

    def _instance_loss(self, projection: Tensor | None, key: Tensor | None) -> Tensor:
        """Minus twice the cosine of two views' mean cells, the one predicted from the other."""
        if self.predictor is None or projection is None or key is None:
            return torch.zeros((), device=self._device)
        prediction = self.predictor(projection).float().mean(dim=(2, 3))  # b d
        return -2 * F.cosine_similarity(prediction, key.float().mean(dim=(2, 3)), dim=1).mean()

    @property
    def _device(self) -> torch.device:
        return next(self.online.parameters()).device

    def _check(self, images: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Move a batch to the model, and normalise its images: [b 2 3 h w]."""
        if images.ndim != 5 or images.shape[1] != 2:
            raise ImageError(f"Pairs of views must be [b 2 3 h w], not {list(images.shape)}.")
        flat = images.flatten(0, 1)
        check_native(flat, self.image_size)
        if boxes.shape != (len(images), 2, 4):
            raise SettingError(f"The boxes must be [b 2 4], here {[len(images), 2, 4]}, not {list(boxes.shape)}.")
        pixels = normalize(flat.to(self._device), torch.float32)
        return pixels.unflatten(0, (len(images), 2)), boxes.to(self._device)
