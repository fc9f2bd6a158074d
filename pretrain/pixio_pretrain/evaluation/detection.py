"""Boxes around objects, on VOC and COCO: the encoder is fine-tuned inside of a Faster R-CNN."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import draw_bounding_boxes
from tqdm import tqdm

from pixio_pretrain.evaluation.average_precision import MOST, Detections, average_precision
from pixio_pretrain.evaluation.chance import seeded
from pixio_pretrain.evaluation.detector import build_detector
from pixio_pretrain.evaluation.job import Job, Outcome, open_parts
from pixio_pretrain.evaluation.loop import Recipe, fit
from pixio_pretrain.evaluation.pictures import SHOWN, side_by_side
from pixio_pretrain.evaluation.sets.boxes import BOX_SETS, BoxSet
from pixio_pretrain.evaluation.views import to_pixels
from pixio_robot.errors import SettingError, UnknownNameError

LAYOUTS = ("c4", "fpn")
POINTS = {"voc": 11, "coco": 101}
"""Recalls at which precision is read: those of the set's own metric."""

SURE = 0.5
"""Score from which on a box is pictured."""


@dataclass(kw_only=True)
class DetectionConfig:
    """Faster R-CNN (arXiv 1506.01497) on a ResNet, such as PixPro's: all of its weights are trained.

    Attributes:
        set: "voc" (trained on 2007 and 2012, measured on 2007's test part) or "coco".
        layout: "c4" (the fourth stage, with the fifth as head) or "fpn"; a pyramid that was pre-trained with the
            encoder is used.
        sizes: Shorter sides in pixels: one of them by chance in training, the last one in measuring.
        longest: Bound on the longer side, pixels.
        trained_norms: Train the batch norms, which wants some 16 images per step; else they stay as they were
            pre-trained.
        weight_decay: Of all weights.
        recipe: See ``Recipe``; the defaults are the usual ones for VOC.
    """

    name: str = "detection"
    set: str = "voc"
    layout: str = "c4"
    sizes: list[int] = field(default_factory=lambda: list(range(480, 801, 32)))
    longest: int = 1333
    trained_norms: bool = True
    weight_decay: float = 1e-4
    recipe: Recipe = field(
        default_factory=lambda: Recipe(epochs=23, batch_size=16, lr=0.02, warmup=0.004, decay="steps")
    )

    def __post_init__(self) -> None:
        if self.set not in BOX_SETS:
            raise UnknownNameError("set of boxes", self.set, BOX_SETS)
        if self.layout not in LAYOUTS:
            raise UnknownNameError("layout of a detector", self.layout, LAYOUTS)
        if not self.sizes or min(self.sizes) < 1 or self.longest < max(self.sizes):
            raise SettingError("task.sizes must be above 0, and task.longest at least the greatest of them.")

    @property
    def title(self) -> str:
        """Task, data set and layout."""
        return f"detection-{self.set}-{self.layout}"

    def run(self, job: Job) -> Outcome:
        """Train, and measure the validation part."""
        train, val, data = open_parts(BOX_SETS[self.set], job)
        boxer = Boxer(self, job, train)

        def measure() -> dict[str, float]:
            rules: dict[str, Any] = {"points": POINTS[self.set], "crowds": self.set == "coco"}
            return average_precision(boxer.detect(val), val.objects, classes=len(val.names), **rules)

        facts = fit(boxer, self.recipe, job, data=data, measure=measure)
        facts["pretrained_pyramid_levels"] = boxer.levels
        return Outcome(metrics=measure(), images={}, data=data, facts=facts, pictures=boxer.pictures(val))


class Boxer:
    """A detector and what it learns from; see ``loop.Trainee``."""

    def __init__(self, config: DetectionConfig, job: Job, train: BoxSet) -> None:
        self.config, self.job, self.train, self.samples = config, job, train, len(train)
        with seeded(job.config.seed):
            self.module, self.levels = build_detector(
                job.encoder,
                job.pyramid,
                layout=config.layout,
                classes=len(train.names),
                sizes=tuple(config.sizes),
                longest=config.longest,
                trained_norms=config.trained_norms,
            )

    def sample(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """An image, one in two mirrored, and its objects but for those to be ignored; class 0 is the background."""
        pixels, objects = to_pixels(self.train.image(index)), self.train.objects[index]
        boxes, labels = (torch.from_numpy(part[~objects.ignored]) for part in (objects.boxes, objects.labels))
        if torch.rand(()) < 0.5:
            pixels = pixels.flip(2)
            boxes = torch.stack(
                [pixels.shape[2] - boxes[:, 2], boxes[:, 1], pixels.shape[2] - boxes[:, 0], boxes[:, 3]], dim=1
            )
        return pixels, {"boxes": boxes, "labels": labels + 1}

    def collate(self, samples: list[Any]) -> Any:
        """Images have sizes of their own: a list."""
        return samples

    def optimizer(self) -> torch.optim.Optimizer:
        """Momentum SGD."""
        weights = [weight for weight in self.module.parameters() if weight.requires_grad]
        return torch.optim.SGD(weights, lr=0.0, momentum=0.9, weight_decay=self.config.weight_decay)

    def loss(self, batch: Any) -> Tensor:
        """The four losses of Faster R-CNN, added up."""
        device = self.job.device
        images = [pixels.to(device).float() / 255 for pixels, _ in batch]
        targets = [{key: value.to(device) for key, value in target.items()} for _, target in batch]
        return torch.stack(list(self.module(images, targets).values())).sum()

    @torch.no_grad()
    def find(self, pixels: Tensor) -> Detections:
        """Detect objects in an image uint8 [3 h w]."""
        self.module.eval()
        with self.job.autocast():
            (found,) = self.module([pixels.to(self.job.device).float() / 255])
        parts = {key: value[:MOST].float().cpu().numpy() for key, value in found.items()}
        return Detections(boxes=parts["boxes"], labels=parts["labels"].astype(np.int64) - 1, scores=parts["scores"])

    def detect(self, val: BoxSet) -> list[Detections]:
        """Detect objects in every image."""
        return [self.find(to_pixels(val.image(index))) for index in tqdm(range(len(val)), desc="measure", unit="image")]

    def pictures(self, val: BoxSet) -> dict[str, Image.Image]:
        """Image, truth and detections of a few images."""
        shown = {}
        for index in np.unique(np.linspace(0, len(val) - 1, SHOWN).astype(int)):
            pixels, objects = to_pixels(val.image(int(index))), val.objects[int(index)]
            found = self.find(pixels)
            sure = found.scores >= SURE
            drawn = [
                _draw(pixels, objects.boxes, [val.names[label] for label in objects.labels]),
                _draw(pixels, found.boxes[sure], [val.names[label] for label in found.labels[sure]]),
            ]
            shown[f"{index:05d}.png"] = side_by_side(pixels, *drawn)
        return shown


def _draw(pixels: Tensor, boxes: np.ndarray, names: list[str]) -> Tensor:
    if not names:
        return pixels
    return draw_bounding_boxes(pixels, torch.from_numpy(boxes), names, width=2)
