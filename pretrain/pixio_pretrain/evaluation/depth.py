"""Metric depth of one image, on NYUv2 and KITTI."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate
from tqdm import tqdm

from pixio_pretrain.evaluation.dense import RATES, DenseReader, check_head, draw_crop
from pixio_pretrain.evaluation.job import Job, Outcome, Values, open_parts
from pixio_pretrain.evaluation.loop import Recipe, fit
from pixio_pretrain.evaluation.pictures import SHOWN, depth_colours, side_by_side
from pixio_pretrain.evaluation.sets.depths import DEPTH_SETS, EIGEN, DepthSet
from pixio_pretrain.evaluation.views import to_pixels
from pixio_pretrain.geometry.losses import silog
from pixio_pretrain.geometry.metrics import depth_errors
from pixio_robot.errors import DataError, SettingError, UnknownNameError

NEAREST = 1e-3
CROPS = ("none", "eigen", "garg")


@dataclass(kw_only=True)
class DepthConfig:
    """Depth as Pixio's tables have it: a head on a frozen encoder, crops of the full resolution, sliding windows.

    Attributes:
        set: "nyuv2" or "kitti".
        head: "linear" or "dpt".
        preset: Sizes of DPT: those of Pixio's tables ("paper"), or smaller ones ("base", "tiny").
        side: Side of crops and windows in pixels.
        crop_images: Cut NYUv2's frames to the Eigen crop before anything else, as Pixio does: the network never sees
            their border.
        mask: Count pixels in the Eigen crop only (NYUv2), in Garg's (KITTI), or all ("none", as Pixio).
        max_depth: What is farther does not count, metres; 0 takes the data set's (10 and 80).
        recipe: See ``Recipe``; a rate of 0 takes Pixio's for the head: 2e-4 (linear), 1e-4 (dpt).
    """

    name: str = "depth"
    set: str = "nyuv2"
    head: str = "dpt"
    preset: str = "paper"
    side: int = 256
    crop_images: bool = True
    mask: str = "none"
    max_depth: float = 0.0
    recipe: Recipe = field(default_factory=lambda: Recipe(epochs=60, batch_size=32, lr=0.0, warmup=0.1))

    def __post_init__(self) -> None:
        check_head(self.head)
        if self.set not in DEPTH_SETS:
            raise UnknownNameError("set of depth", self.set, DEPTH_SETS)
        if self.mask not in CROPS:
            raise UnknownNameError("mask", self.mask, CROPS)
        borders_seen = self.set == "nyuv2" and not self.crop_images
        if (self.mask == "garg" and self.set != "kitti") or (self.mask == "eigen" and not borders_seen):
            raise SettingError("task.mask=garg is for kitti; task.mask=eigen is for nyuv2 with crop_images=false.")
        self.recipe.lr = self.recipe.lr or RATES[self.head]

    @property
    def title(self) -> str:
        """Task, data set and head."""
        return f"depth-{self.set}-{self.head}"

    def run(self, job: Job) -> Outcome:
        """Train, and measure the validation part."""
        train, val, data = open_parts(DEPTH_SETS[self.set], job)
        reader = DepthReader(self, job, train)
        facts = fit(reader, self.recipe, job, data=data, measure=lambda: mean_errors(reader.errors(val)))
        images = reader.errors(val)
        return Outcome(
            metrics=mean_errors(images), images=images, data=data, facts=facts, pictures=reader.pictures(val)
        )


def mean_errors(errors: dict[str, Values]) -> dict[str, float]:
    """Average over the images that have enough valid pixels.

    Raises:
        DataError: If none has.
    """
    if not np.isfinite(errors["abs_rel"]).any():
        raise DataError("No validation image has valid depth; are its depth maps empty, or beyond task.max_depth?")
    return {name: float(np.nanmean(values)) for name, values in errors.items()}


class DepthReader:
    """A depth head and what it learns from; see ``loop.Trainee``."""

    def __init__(self, config: DepthConfig, job: Job, train: DepthSet) -> None:
        self.config, self.train, self.samples = config, train, len(train)
        self.max_depth = config.max_depth or train.max_depth
        self.module = DenseReader(job, head=config.head, preset=config.preset, channels=1, side=config.side)
        self.collate, self.optimizer = default_collate, self.module.optimizer

    def read(self, images: DepthSet, index: int) -> tuple[Tensor, Tensor]:
        """One image uint8 [3 h w], and metres [h w].

        Raises:
            DataError: If it is smaller than a training crop.
        """
        image, depth = images.sample(index)
        pixels, target = to_pixels(image), torch.from_numpy(depth)
        if self.config.set == "nyuv2" and self.config.crop_images:
            top, bottom, left, right = EIGEN
            pixels, target = pixels[:, top:bottom, left:right], target[top:bottom, left:right]
        if min(target.shape) < self.config.side:
            raise DataError(
                f"{images.pairs[index][0]} is {tuple(target.shape)} pixels high and wide, less than a crop of "
                f"{self.config.side}: choose a smaller task.side."
            )
        return pixels, target

    def sample(self, index: int) -> tuple[Tensor, Tensor]:
        """A crop and its depth."""
        return draw_crop(*self.read(self.train, index), self.config.side)

    def metres(self, said: Tensor) -> Tensor:
        """What the head says [b 1 h w], as metres [b h w]."""
        return said.sigmoid()[:, 0] * self.max_depth

    def loss(self, batch: Any) -> Tensor:
        """The scale-invariant loss over all valid pixels of the batch; 0 where there is none."""
        images, depth = batch[0], batch[1].to(self.module.job.device)
        valid = (depth >= NEAREST) & (depth <= self.max_depth)
        predicted = self.metres(self.module(images)).clamp(min=NEAREST)
        if not valid.any():
            return 0 * predicted.sum()
        return silog(predicted, torch.where(valid, depth, 1.0), valid)

    def predict(self, pixels: Tensor) -> Tensor:
        """Depth of an image of any size, metres [h w]."""
        self.module.eval()
        return self.module.slide(pixels, lambda said: self.metres(said)[:, None])[0]

    def errors(self, val: DepthSet) -> dict[str, Values]:
        """Measure every image by itself: each [n], NaN for one without enough valid pixels."""
        rows = []
        for index in tqdm(range(len(val)), desc="measure", unit="image"):
            pixels, depth = self.read(val, index)
            mask = self._mask(val, (depth.shape[0], depth.shape[1]))
            rows.append(
                depth_errors(
                    self.predict(pixels)[None],
                    depth[None],
                    mask=mask[None],
                    min_depth=NEAREST,
                    max_depth=self.max_depth,
                )
            )
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    def _mask(self, images: DepthSet, size: tuple[int, int]) -> np.ndarray:
        box = {"none": None, "eigen": EIGEN, "garg": images.garg_box(size)}[self.config.mask]
        mask = np.ones(size, np.bool_)
        if box is not None:
            top, bottom, left, right = box
            mask[:] = False
            mask[top:bottom, left:right] = True
        return mask

    def pictures(self, val: DepthSet) -> dict[str, Image.Image]:
        """Image, truth, prediction and relative error of a few images."""
        shown = {}
        for index in np.unique(np.linspace(0, len(val) - 1, SHOWN).astype(int)):
            pixels, depth = self.read(val, int(index))
            predicted = self.predict(pixels)
            known = (depth >= NEAREST) & (depth <= self.max_depth)
            error = torch.where(known, (predicted - depth).abs() / depth.clamp(min=NEAREST), 0.0)
            maps = [depth_colours(part, self.max_depth) for part in (torch.where(known, depth, 0.0), predicted)]
            shown[f"{index:05d}.png"] = side_by_side(pixels, *maps, depth_colours(error, 0.5))
        return shown
