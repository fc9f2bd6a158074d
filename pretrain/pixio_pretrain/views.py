"""Batches of crops. Everything about a batch follows from the seed and the step, so that a run can start anywhere."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from pixio_pretrain.data import Frames


class Batch(NamedTuple):
    """One step's data.

    Attributes:
        images: uint8 [b 3 s s].
        noise: float32 [b mask blocks], uniform; decides which blocks are hidden.
    """

    images: Tensor
    noise: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Views(Dataset[Batch]):
    """Random resized crops of frames, as batches that are indexed by step.

    Every frame is seen once per pass, in an order of its own for each pass. There is no flip: left and right differ
    for a robot.

    Attributes:
        frames: Where images come from.
        indices: Which of them to use.
        batch_size: Crops per batch.
        image_size: Side of a crop in pixels.
        mask_blocks: Length of the noise that each crop comes with.
        crop_scale: Smallest area of a crop, as a share of the largest that fits; 1 takes all of a square frame.
        seed: Fixes order, crops and noise.
    """

    frames: Frames
    indices: NDArray[np.int64]
    batch_size: int
    image_size: int
    mask_blocks: int
    crop_scale: float
    seed: int

    def __getitem__(self, step: int) -> Batch:
        """Make the batch of one step."""
        return self.load(self._order(step), np.random.default_rng([self.seed, 1, step]))

    def load(self, indices: NDArray[np.int64], random: np.random.Generator) -> Batch:
        """Crop some frames, and draw the noise of their masks."""
        images = [self._crop(self.frames.image(index), random) for index in indices]
        noise = random.random((len(indices), self.mask_blocks), dtype=np.float32)
        return Batch(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), torch.from_numpy(noise))

    def _order(self, step: int) -> NDArray[np.int64]:
        """Frame indices [b] of one step; a batch may reach over the end of a pass."""
        places = step * self.batch_size + np.arange(self.batch_size)
        passes, places = np.divmod(places, len(self.indices))
        return np.concatenate([self._permutation(turn)[places[passes == turn]] for turn in np.unique(passes)])

    def _permutation(self, turn: int) -> NDArray[np.int64]:
        return np.random.default_rng([self.seed, 0, turn]).permutation(self.indices)

    def _crop(self, image: Image.Image, random: np.random.Generator) -> NDArray[np.uint8]:
        """Cut out a random rectangle, of a shape between 3:4 and 4:3, and resize it bicubically: [s s 3]."""
        box = draw_box(image.size, self.crop_scale, random)
        return np.asarray(image.resize((self.image_size, self.image_size), Image.Resampling.BICUBIC, box=box))


def draw_box(size: tuple[int, int], scale: float, random: np.random.Generator) -> tuple[float, float, float, float]:
    """Draw a crop box (left, top, right, bottom) in pixels.

    Args:
        size: Width and height of the image.
        scale: Smallest share of the area that a crop keeps. At 1 the box is the largest centred square.
        random: Source of chance.

    Returns:
        A box inside the image: area uniform in [scale, 1] of the image's, width : height log-uniform in [3/4, 4/3],
        shrunk to fit where it would reach over the edge.
    """
    width, height = size
    if scale >= 1:
        side = min(size)
        left, top = (width - side) / 2, (height - side) / 2
        return left, top, left + side, top + side
    area = random.uniform(scale, 1) * width * height
    shape = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
    w, h = min(math.sqrt(area * shape), width), min(math.sqrt(area / shape), height)
    left, top = random.uniform(0, width - w), random.uniform(0, height - h)
    return left, top, left + w, top + h
