"""A linear classifier on frozen features."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import default_collate

from pixio_pretrain.evaluation.features import encode, stored_features
from pixio_pretrain.evaluation.job import Job, Outcome, Values, means, open_parts
from pixio_pretrain.evaluation.knn import KINDS, right
from pixio_pretrain.evaluation.loop import Recipe, fit
from pixio_pretrain.evaluation.sets.classes import ClassSet, open_classes
from pixio_pretrain.evaluation.views import centre_view, random_view, to_pixels
from pixio_pretrain.optim import Lars
from pixio_robot.errors import UnknownNameError
from pixio_robot.nn import no_autocast

HEAD_STD = 0.01
RATE = 0.1
"""Peak rate for each 256 images of batch."""


@dataclass(kw_only=True)
class LinearConfig:
    """MAE's linear probe (arXiv 2111.06377, appendix A.1): batch norm without scale, one linear map, LARS.

    Attributes:
        features: "classes" (mean class token) or "patches" (mean patch), after the final norm.
        augment: Train on random crops, mirrored, encoded anew in each epoch. False takes one centre crop of each
            image, encoded once: far cheaper, and not the published protocol.
        side: Side of the images in pixels; 0 takes the encoder's own.
        recipe: See ``Recipe``; a rate of 0 takes 0.1 for each 256 images of batch.
    """

    name: str = "linear"
    features: str = "classes"
    augment: bool = True
    side: int = 0
    recipe: Recipe = field(
        default_factory=lambda: Recipe(epochs=90, batch_size=16384, lr=0.0, warmup=10 / 90, decay="cosine")
    )

    def __post_init__(self) -> None:
        if self.features not in KINDS:
            raise UnknownNameError("kind of feature", self.features, KINDS)
        self.recipe.lr = self.recipe.lr or RATE * self.recipe.batch_size / 256

    @property
    def title(self) -> str:
        """Task and data set."""
        return "linear-imagenet"

    def run(self, job: Job) -> Outcome:
        """Train, and classify the validation part."""
        train, val, data = open_parts(open_classes, job)
        probe = LinearProbe(self, job, train)
        known = probe.features_of(val, "val")
        truth = torch.from_numpy(val.labels)

        def measure() -> dict[str, Values]:
            with torch.no_grad():
                parts = [probe.module(part.to(job.device).float()).cpu() for part in known.split(4096)]
            return right(torch.cat(parts), truth)

        facts = fit(probe, self.recipe, job, data=data, measure=lambda: means(measure()))
        images = measure()
        return Outcome(metrics=means(images), images=images, data=data, facts=facts)


class LinearProbe:
    """The classifier and what it learns from; see ``loop.Trainee``."""

    def __init__(self, config: LinearConfig, job: Job, train: ClassSet) -> None:
        self.config, self.job, self.train = config, job, train
        self.samples, self.collate = len(train), default_collate
        self.side = config.side or job.encoder.spec.image_size
        width = job.encoder.spec.width
        linear = nn.Linear(width, train.classes)
        generator = torch.Generator().manual_seed(job.config.seed)
        nn.init.trunc_normal_(linear.weight, std=HEAD_STD, generator=generator)
        nn.init.zeros_(linear.bias)
        self.module = nn.Sequential(nn.BatchNorm1d(width, affine=False, eps=1e-6), linear)
        self.view = random_view(self.side)
        self.stored = None if config.augment else self.features_of(train, "train")

    def features_of(self, images: ClassSet, name: str) -> Tensor:
        """Centre crops, encoded once: float16 [n d]."""
        resize = round(self.side * 256 / 224)
        facts: dict[str, Any] = {"side": self.side, "resize": resize}
        view, file = centre_view(self.side, resize), self.job.folder / f"{name}.npy"
        return stored_features(images, view, self.job, file, kind=self.config.features, norm=True, facts=facts)

    def sample(self, index: int) -> tuple[Tensor, int]:
        """One image or its feature, and its class."""
        if self.stored is not None:
            return self.stored[index], int(self.train.labels[index])
        return to_pixels(self.view(self.train.image(index))), int(self.train.labels[index])

    def optimizer(self) -> torch.optim.Optimizer:
        """LARS; biases are not adapted. Nothing is decayed."""
        linear: Any = self.module[1]
        return Lars([{"params": [linear.weight]}, {"params": [linear.bias], "adapt": False}], lr=0.0)

    def loss(self, batch: Any) -> Tensor:
        """Cross-entropy, in float32."""
        inputs, labels = batch
        if self.stored is None:
            size = self.job.config.batch_size
            parts = [
                encode(self.job.encoder, p, self.job, kind=self.config.features, norm=True) for p in inputs.split(size)
            ]
            inputs = torch.cat(parts)
        with no_autocast(self.job.device):
            return F.cross_entropy(self.module(inputs.to(self.job.device).float()), labels.to(self.job.device))
