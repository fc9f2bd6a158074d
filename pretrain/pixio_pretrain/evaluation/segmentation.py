"""The class of every pixel, on ADE20K, VOC and LoveDA."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import default_collate
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as V
from tqdm import tqdm

from pixio_pretrain.evaluation.dense import RATES, DenseReader, check_head, draw_crop
from pixio_pretrain.evaluation.job import Job, Outcome, Values, open_parts
from pixio_pretrain.evaluation.loop import Recipe, fit
from pixio_pretrain.evaluation.pictures import SHOWN, class_colours, side_by_side
from pixio_pretrain.evaluation.sets.masks import IGNORED, MASK_SETS, MaskSet
from pixio_pretrain.evaluation.views import to_pixels
from pixio_robot.errors import SettingError, UnknownNameError

BATCHES = {"ade20k": 16, "voc_aug": 32, "loveda": 8}
FASTER = {"loveda": 2.0}
"""Data sets on which Pixio takes a multiple of the rate."""


@dataclass(kw_only=True)
class SegmentationConfig:
    """Segmentation as Pixio's tables have it: a head on a frozen encoder, random scales and crops, sliding windows.

    Attributes:
        set: "ade20k", "voc_aug" or "loveda".
        head: "linear" or "dpt".
        preset: Sizes of DPT: those of Pixio's tables ("paper"), or smaller ones ("base", "tiny").
        side: Side of crops and windows in pixels.
        scales: Least and greatest factor that training images are resized by.
        recipe: See ``Recipe``; a rate of 0 takes Pixio's for head and set (2e-4 linear, 1e-4 dpt, twice that on
            LoveDA), and a batch size of 0 its batch for the set (16, 32 and 8).
    """

    name: str = "segmentation"
    set: str = "ade20k"
    head: str = "dpt"
    preset: str = "paper"
    side: int = 256
    scales: tuple[float, float] = (0.5, 2.0)
    recipe: Recipe = field(default_factory=lambda: Recipe(epochs=60, batch_size=0, lr=0.0))

    def __post_init__(self) -> None:
        check_head(self.head)
        if self.set not in MASK_SETS:
            raise UnknownNameError("set of masks", self.set, MASK_SETS)
        if not 0 < self.scales[0] <= self.scales[1]:
            raise SettingError(f"task.scales={list(self.scales)}: the first must be above 0 and not above the second.")
        self.recipe.lr = self.recipe.lr or RATES[self.head] * FASTER.get(self.set, 1.0)
        self.recipe.batch_size = self.recipe.batch_size or BATCHES[self.set]

    @property
    def title(self) -> str:
        """Task, data set and head."""
        return f"segmentation-{self.set}-{self.head}"

    def run(self, job: Job) -> Outcome:
        """Train, and measure the validation part."""
        train, val, data = open_parts(MASK_SETS[self.set], job)
        reader = MaskReader(self, job, train)
        facts = fit(reader, self.recipe, job, data=data, measure=lambda: {"miou": mean_iou(reader.counts(val))})
        counts = reader.counts(val)
        facts["iou"] = class_ious(counts).tolist()
        metrics = {"miou": mean_iou(counts)}
        return Outcome(metrics=metrics, images={"miou": counts}, data=data, facts=facts, pictures=reader.pictures(val))


def count_overlaps(predicted: Tensor, labels: Tensor, classes: int) -> Values:
    """Count pixels of each class in one image where prediction and truth agree, and where either says it.

    Args:
        predicted: Classes [h w].
        labels: Classes [h w], ``IGNORED`` where there is none.
        classes: Number of classes.

    Returns:
        Intersection and union, [classes 2].
    """
    known = labels != IGNORED
    p, t = predicted[known].long(), labels[known].long()
    both = torch.bincount(t[p == t], minlength=classes)
    union = torch.bincount(p, minlength=classes) + torch.bincount(t, minlength=classes) - both
    return torch.stack([both, union], dim=1).double().numpy()


def class_ious(counts: Values) -> Values:
    """Intersection over union of each class over a whole set, from counts [n classes 2]; 0 for one never met."""
    both, union = counts.sum(axis=0).T
    return both / np.maximum(union, 1)


def mean_iou(counts: Values) -> float:
    """Mean over all classes, as Pixio's evaluation takes it: one that is never met counts as 0."""
    return float(class_ious(counts).mean())


class MaskReader:
    """A segmentation head and what it learns from; see ``loop.Trainee``."""

    def __init__(self, config: SegmentationConfig, job: Job, train: MaskSet) -> None:
        self.config, self.train, self.samples = config, train, len(train)
        self.module = DenseReader(job, head=config.head, preset=config.preset, channels=train.classes, side=config.side)
        self.collate, self.optimizer = default_collate, self.module.optimizer

    def sample(self, index: int) -> tuple[Tensor, Tensor]:
        """A crop of a resized image and its labels; beyond the image it is black and without labels."""
        image, labels = self.train.sample(index)
        pixels, target, side = to_pixels(image), torch.from_numpy(labels), self.config.side
        low, high = self.config.scales
        scale = low + (high - low) * torch.rand(()).item()
        size = [max(1, round(length * scale)) for length in target.shape]
        pixels = V.resize(pixels, size, InterpolationMode.BICUBIC, antialias=True)
        target = V.resize(target[None], size, InterpolationMode.NEAREST_EXACT)[0]
        below, beside = (max(0, side - length) for length in size)
        pixels, target = F.pad(pixels, (0, beside, 0, below)), F.pad(target, (0, beside, 0, below), value=IGNORED)
        return draw_crop(pixels, target, side)

    def loss(self, batch: Any) -> Tensor:
        """Cross-entropy over the labelled pixels of the batch; 0 where there is none."""
        images, labels = batch[0], batch[1].to(self.module.job.device).long()
        scores = self.module(images)
        if not (labels != IGNORED).any():
            return 0 * scores.sum()
        return F.cross_entropy(scores, labels, ignore_index=IGNORED)

    def predict(self, pixels: Tensor) -> Tensor:
        """Classes of an image of any size [h w]."""
        self.module.eval()
        return self.module.slide(pixels, lambda said: said.softmax(dim=1)).argmax(dim=0)

    def counts(self, val: MaskSet) -> Values:
        """Intersections and unions of every image [n classes 2]."""
        rows = []
        for index in tqdm(range(len(val)), desc="measure", unit="image"):
            image, labels = val.sample(index)
            rows.append(count_overlaps(self.predict(to_pixels(image)), torch.from_numpy(labels), val.classes))
        return np.stack(rows)

    def pictures(self, val: MaskSet) -> dict[str, Image.Image]:
        """Image, truth, prediction and errors (white) of a few images."""
        shown = {}
        for index in np.unique(np.linspace(0, len(val) - 1, SHOWN).astype(int)):
            image, labels = val.sample(int(index))
            pixels, truth = to_pixels(image), torch.from_numpy(labels)
            predicted = self.predict(pixels)
            wrong = ((predicted != truth) & (truth != IGNORED)).byte() * 255
            maps = [class_colours(part) for part in (truth, predicted)]
            shown[f"{index:05d}.png"] = side_by_side(pixels, *maps, wrong.expand(3, -1, -1))
        return shown
