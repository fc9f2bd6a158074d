"""Fine-tuning on ImageNet: the whole encoder, its last blocks, or the last block's MLP."""

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import default_collate
from torchvision.transforms import v2

from pixio_pretrain.evaluation.job import Job, Outcome, Values, means, open_parts
from pixio_pretrain.evaluation.knn import KINDS, right
from pixio_pretrain.evaluation.loop import Recipe, fit
from pixio_pretrain.evaluation.sets.classes import ClassSet, open_classes
from pixio_pretrain.evaluation.views import (
    ErasedNormal,
    NoisyRandAugment,
    batches_of,
    centre_view,
    random_view,
    to_pixels,
)
from pixio_robot.errors import SettingError, UnknownNameError
from pixio_robot.images import normalize
from pixio_robot.nn import NORM_EPS, VisionTransformer

HEAD_STD = 2e-5
RATE = 5e-4
"""Peak rate for each 256 images of batch."""
TRAINED = ("all", "blocks", "mlp")


@dataclass(kw_only=True)
class FinetuneConfig:
    """MAE's fine-tuning (arXiv 2111.06377, appendix A.1); the defaults are those of ViT-B.

    Attributes:
        trained: "all", "blocks" (the last ``blocks`` ones) or "mlp" (the last block's MLP with its norm); the
            classifier always.
        blocks: With trained=blocks, how many of them.
        features: "patches" (mean patch, under a fresh norm) as MAE, or "classes" (mean class token) as Pixio.
        layer_decay: The rate of each layer as a share of the next one's.
        drop_path: Stochastic depth of the last block.
        weight_decay: Of matrices.
        mixup: Strength of mixup (arXiv 1710.09412), for one batch in two; 0 leaves it out.
        cutmix: Strength of cutmix (arXiv 1905.04899), for the others; 0 leaves it out.
        smoothing: Share of each label that goes to all classes.
        erasing: Share of the images of which a rectangle becomes noise.
        augment: Change colours and shapes with RandAugment.
        side: Side of the images in pixels; 0 takes the encoder's own.
        recipe: See ``Recipe``; a rate of 0 takes 5e-4 for each 256 images of batch.
    """

    name: str = "finetune"
    trained: str = "all"
    blocks: int = 4
    features: str = "patches"
    layer_decay: float = 0.65
    drop_path: float = 0.1
    weight_decay: float = 0.05
    mixup: float = 0.8
    cutmix: float = 1.0
    smoothing: float = 0.1
    erasing: float = 0.25
    augment: bool = True
    side: int = 0
    recipe: Recipe = field(
        default_factory=lambda: Recipe(epochs=100, batch_size=1024, lr=0.0, warmup=0.05, decay="cosine", min_lr=1e-6)
    )

    def __post_init__(self) -> None:
        if self.trained not in TRAINED:
            raise UnknownNameError("part to train", self.trained, TRAINED)
        if self.features not in KINDS:
            raise UnknownNameError("kind of feature", self.features, KINDS)
        if not all(0 <= share < 1 for share in (self.drop_path, self.smoothing)) or not 0 <= self.erasing <= 1:
            raise SettingError("task.drop_path and task.smoothing must lie in [0, 1), task.erasing in [0, 1].")
        if not 0 < self.layer_decay <= 1 or min(self.mixup, self.cutmix, self.weight_decay) < 0:
            raise SettingError(
                "task.layer_decay must lie in (0, 1], and task.mixup, task.cutmix and task.weight_decay be at least 0."
            )
        self.recipe.lr = self.recipe.lr or RATE * self.recipe.batch_size / 256

    @property
    def title(self) -> str:
        """Task and data set."""
        return "finetune-imagenet"

    def run(self, job: Job) -> Outcome:
        """Train, and classify the validation part."""
        train, val, data = open_parts(open_classes, job)
        tuning = Tuning(self, job, train)
        facts = fit(tuning, self.recipe, job, data=data, measure=lambda: means(tuning.judge(val)))
        images = tuning.judge(val)
        return Outcome(metrics=means(images), images=images, data=data, facts=facts)


class TunedClassifier(nn.Module):
    """A copy of an encoder's backbone, not frozen, and a classifier.

    Args:
        backbone: Is copied.
        classes: Number of classes.
        config: Says which weights take a gradient.
        generator: Draws the classifier.

    Raises:
        SettingError: The backbone is not of Pixio's family, or has fewer blocks.
    """

    def __init__(self, backbone: nn.Module, classes: int, config: FinetuneConfig, generator: torch.Generator) -> None:
        super().__init__()
        if not isinstance(backbone, VisionTransformer):
            raise SettingError(
                "finetune knows the blocks of the families pixio and mae only; linear takes any encoder."
            )
        self.backbone, self.kind = copy.deepcopy(backbone).float().requires_grad_(False), config.features
        width, depth = self.backbone.cls_token.shape[2], len(self.backbone.blocks)
        self.fc_norm = nn.LayerNorm(width, eps=NORM_EPS) if config.features == "patches" else self.backbone.norm
        self.head = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.head.weight, std=HEAD_STD, generator=generator)
        nn.init.zeros_(self.head.bias)
        count = {"all": depth, "blocks": config.blocks, "mlp": 1}[config.trained]
        if not 1 <= count <= depth:
            raise SettingError(f"task.blocks={count}: choose from 1 to {depth}, the encoder's depth.")
        self.first = 0 if config.trained == "all" else depth - count
        blocks: list[Any] = list(self.backbone.blocks)
        for number, block in enumerate(blocks):
            block.drop_path = config.drop_path * number / max(1, depth - 1)
        if config.trained == "all":
            self.backbone.requires_grad_(True)
            self.backbone.pos_embed.requires_grad_(self.backbone.family != "mae")
        for block in blocks[self.first :]:
            for part in (block.norm2, block.mlp) if config.trained == "mlp" else (block,):
                part.requires_grad_(True)
        self.fc_norm.requires_grad_(True)
        if self.fc_norm is not self.backbone.norm:
            self.backbone.norm.requires_grad_(False)  # stands behind nothing

    def forward(self, pixels: Tensor) -> Tensor:
        """Classify normalised images [b 3 h w]: scores [b classes]."""
        classes, patches = self.backbone.embed(pixels)
        x, count = torch.cat([classes, patches], dim=1), classes.shape[1]
        for block in self.backbone.blocks:
            x = block(x)
        if self.kind == "patches":
            return self.head(self.fc_norm(x[:, count:].mean(dim=1)))
        return self.head(self.fc_norm(x[:, :count]).mean(dim=1))

    def train(self, mode: bool = True) -> "TunedClassifier":
        """Keep frozen blocks whole: without drop path."""
        super().train(mode)
        for block in list(self.backbone.blocks)[: self.first]:
            block.eval()
        return self

    def groups(self, *, layer_decay: float, weight_decay: float) -> list[dict[str, Any]]:
        """Group the weights by layer: embeddings, each block, and what follows, each at its share of the rate."""
        last = len(self.backbone.blocks) + 1
        tables = ("cls_token", "pos_embed", "patch_embed")
        groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
        for name, weight in self.named_parameters():
            if weight.requires_grad:
                words = name.split(".")
                layer = 0 if words[1] in tables else int(words[2]) + 1 if words[1] == "blocks" else last
                decayed = weight.ndim > 1 and words[1] not in tables[:2]
                groups.setdefault((layer, decayed), []).append(weight)
        return [
            {"params": weights, "scale": layer_decay ** (last - layer), "weight_decay": weight_decay * decayed}
            for (layer, decayed), weights in groups.items()
        ]


class Tuning:
    """A classifier and what it learns from; see ``loop.Trainee``."""

    def __init__(self, config: FinetuneConfig, job: Job, train: ClassSet) -> None:
        self.config, self.job, self.train, self.samples = config, job, train, len(train)
        self.collate = default_collate
        self.side = config.side or job.encoder.spec.image_size
        generator = torch.Generator().manual_seed(job.config.seed)
        self.module = TunedClassifier(job.encoder.backbone, train.classes, config, generator)
        steps = [random_view(self.side), *([NoisyRandAugment()] if config.augment else [])]
        self.view = v2.Compose(steps)
        mixes = [(v2.MixUp, config.mixup), (v2.CutMix, config.cutmix)]
        kinds = [mix(alpha=alpha, num_classes=train.classes) for mix, alpha in mixes if alpha > 0]
        self.mix = v2.RandomChoice(kinds) if kinds else None
        self.erase = ErasedNormal(config.erasing)

    def sample(self, index: int) -> tuple[Tensor, int]:
        """One image and its class."""
        return to_pixels(self.view(self.train.image(index))), int(self.train.labels[index])

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW."""
        config = self.config
        groups = self.module.groups(layer_decay=config.layer_decay, weight_decay=config.weight_decay)
        return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), fused=True)

    def loss(self, batch: Any) -> Tensor:
        """Cross-entropy with mixed and smoothed labels."""
        images, labels = (part.to(self.job.device) for part in batch)
        pixels = self.erase(normalize(images, torch.float32, self.module.backbone.statistics))
        if self.mix is not None:
            pixels, labels = self.mix(pixels, labels)
        scores = self.module(pixels)
        return F.cross_entropy(scores.float(), labels, label_smoothing=self.config.smoothing)

    @torch.no_grad()
    def judge(self, val: ClassSet) -> dict[str, Values]:
        """Tell of each validation image whether it is classified right."""
        self.module.eval()
        scores, view = [], centre_view(self.side, round(self.side * 256 / 224))
        for images in batches_of(val, view, self.job):
            pixels = normalize(images.to(self.job.device), torch.float32, self.module.backbone.statistics)
            with self.job.autocast():
                scores.append(self.module(pixels).float().cpu())
        return right(torch.cat(scores), torch.from_numpy(val.labels))
