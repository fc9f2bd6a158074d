"""Classification by the nearest training images: nothing is trained."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from pixio_pretrain.evaluation.features import stored_features
from pixio_pretrain.evaluation.job import Job, Outcome, Values, means, open_parts
from pixio_pretrain.evaluation.neighbours import QUERIES, classify
from pixio_pretrain.evaluation.sets.classes import open_classes
from pixio_pretrain.evaluation.views import centre_view
from pixio_robot.errors import SettingError, UnknownNameError

KINDS = ("classes", "patches")


@dataclass(kw_only=True)
class KnnConfig:
    """Weighted k-NN on ImageNet (arXiv 1805.01978, section 3.4), as Pixio has it.

    Attributes:
        neighbours: Numbers of neighbours; Pixio's tables show 10.
        temperature: Each neighbour's weight is exp(cosine / temperature).
        features: "classes" (mean class token) or "patches" (mean patch) of the last block.
        norm: Apply the encoder's final norm; Pixio reads class tokens without it.
        resize: Shorter side in pixels before the centre is cut out; 0 takes the crop's own, so that all of a square
            image is seen, as Pixio at 256 sees it.
        side: Side of the centre crop in pixels; 0 takes the encoder's own.
    """

    name: str = "knn"
    neighbours: list[int] = field(default_factory=lambda: [10, 20, 100, 200])
    temperature: float = 0.07
    features: str = "classes"
    norm: bool = False
    resize: int = 0
    side: int = 0

    def __post_init__(self) -> None:
        if not self.neighbours or min(self.neighbours) < 1 or self.temperature <= 0:
            raise SettingError("task.neighbours must be at least 1 each, and task.temperature above 0.")
        if self.features not in KINDS:
            raise UnknownNameError("kind of feature", self.features, KINDS)

    @property
    def title(self) -> str:
        """Task and data set."""
        return "knn-imagenet"

    def run(self, job: Job) -> Outcome:
        """Classify the validation part."""
        train, val, data = open_parts(open_classes, job)
        if max(self.neighbours) > len(train):
            raise SettingError(f"task.neighbours={self.neighbours}: there are only {len(train)} training images.")
        side = self.side or job.encoder.spec.image_size
        view = centre_view(side, max(self.resize, side))
        facts = {"side": side, "resize": max(self.resize, side)}
        bank, queries = (
            stored_features(
                part, view, job, job.folder / f"{name}.npy", kind=self.features, norm=self.norm, facts=facts
            )
            for name, part in (("train", train), ("val", val))
        )
        images = self._classify(bank, torch.from_numpy(train.labels), queries, torch.from_numpy(val.labels), job)
        return Outcome(metrics=means(images), images=images, data=data)

    def _classify(self, bank: Tensor, labels: Tensor, queries: Tensor, truth: Tensor, job: Job) -> dict[str, Values]:
        """Tell of each query whether its class is the first, and among the first five, for each k."""
        classes = int(labels.max()) + 1
        unit = torch.empty(bank.shape, device=job.device)
        for start in range(0, len(bank), 65536):  # one copy in float32, and never two
            part = bank[start : start + 65536].to(job.device).float()
            unit[start : start + 65536] = F.normalize(part, dim=1)
        labels, found = labels.to(job.device), {}
        chunks = list(zip(queries.split(4 * QUERIES), truth.split(4 * QUERIES), strict=True))
        for part, answers in tqdm(chunks, desc="neighbours", unit="chunk"):
            ranked = classify(
                part.to(job.device),
                unit,
                labels,
                neighbours=self.neighbours,
                classes=classes,
                temperature=self.temperature,
            )
            for count, votes in ranked:
                for name, values in right(votes.cpu(), answers).items():
                    found.setdefault(f"{name}_k{count}", []).append(values)
        return {name: np.concatenate(parts) for name, parts in found.items()}


def right(scores: Tensor, truth: Tensor) -> dict[str, Values]:
    """Tell of each image [b] whether its class has the greatest score, and one of the five greatest."""
    ranked = scores.topk(min(5, scores.shape[1]), dim=1).indices == truth[:, None]
    return {"top1": ranked[:, 0].double().numpy(), "top5": ranked.any(dim=1).double().numpy()}
