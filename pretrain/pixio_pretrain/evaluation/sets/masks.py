"""ADE20K, augmented VOC and LoveDA: an image and the class of each of its pixels."""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pixio_pretrain.evaluation.sets.layout import Layout, describe
from pixio_pretrain.evaluation.sets.pairs import PairedSet
from pixio_robot.errors import DataError

IGNORED = 255
"""The label of pixels that do not count."""


class MaskSet(PairedSet):
    """Images with a label for every pixel. Arguments and errors are those of ``PairedSet``.

    Attributes:
        classes: How many there are.
        first: Number that the files give to class 0; what is below it is not labelled, and neither is 255.
    """

    classes: ClassVar[int]
    first: ClassVar[int]

    def sample(self, index: int) -> tuple[Image.Image, NDArray[np.uint8]]:
        """One sample.

        Returns:
            The image, RGB, and its labels [h w], ``IGNORED`` where there is none.

        Raises:
            DataError: If a file cannot be decoded, sizes differ, or a label is out of range.
        """
        image, stored = self._read(index)
        known = (stored >= self.first) & (stored != IGNORED)
        labels = np.where(known, stored.astype(np.int64) - self.first, IGNORED)
        if known.any() and labels[known].max() >= self.classes:
            raise DataError(
                f"{self.root / self.pairs[index][1]} has label {stored[known].max()}; {self.layout.name}'s run from "
                f"{self.first} to {self.first + self.classes - 1}, beside 255 for pixels without one."
            )
        return image, labels.astype(np.uint8)

    def describe(self) -> dict[str, Any]:
        """Which samples they are."""
        return describe(self.layout.name, self.part, [image for image, _ in self.pairs], classes=self.classes)


class ADE20K(MaskSet):
    """Scenes with 150 classes, of MIT's scene parsing challenge."""

    layout = Layout(
        name="ADE20K",
        counts={"train": 20_210, "val": 2_000},
        tree="""
ROOT/images/training/ADE_train_00000001.jpg
ROOT/images/validation/ADE_val_00000001.jpg
ROOT/annotations/training/ADE_train_00000001.png    8 bit, classes 1 to 150, 0 is none of them
ROOT/annotations/validation/ADE_val_00000001.png
""",
    )
    classes = 150
    first = 1

    def _find(self) -> list[tuple[str, str]]:
        folder = {"train": "training", "val": "validation"}[self.part]
        names = sorted(path.stem for path in (self.root / "images" / folder).glob("*.jpg"))
        return [(f"images/{folder}/{name}.jpg", f"annotations/{folder}/{name}.png") for name in names]


class AugmentedVOC(MaskSet):
    """VOC 2012 with the training masks of SBD, 21 classes."""

    layout = Layout(
        name="VOC 2012 (augmented)",
        counts={"train": 10_582, "val": 1_449},
        tree="""
ROOT/JPEGImages/2007_000032.jpg
ROOT/SegmentationClassAug/2007_000032.png     8 bit, classes 0 to 20, 255 is a border
ROOT/ImageSets/Segmentation/trainaug.txt      names, one per line
ROOT/ImageSets/Segmentation/val.txt
""",
    )
    classes = 21
    first = 0

    def _find(self) -> list[tuple[str, str]]:
        file = {"train": "trainaug", "val": "val"}[self.part]
        names = self.layout.read_list(self.root, f"ImageSets/Segmentation/{file}.txt")
        return [(f"JPEGImages/{name}.jpg", f"SegmentationClassAug/{name}.png") for name in names]


class LoveDA(MaskSet):
    """Land cover from above, 7 classes."""

    layout = Layout(
        name="LoveDA",
        counts={"train": 2_522, "val": 1_669},
        tree="""
ROOT/Train/Rural/images_png/0.png
ROOT/Train/Rural/masks_png/0.png     8 bit, classes 1 to 7, 0 is no data
ROOT/Train/Urban/...
ROOT/Val/{Rural,Urban}/...
""",
    )
    classes = 7
    first = 1

    def _find(self) -> list[tuple[str, str]]:
        part = self.part.capitalize()
        images = sorted((self.root / part).glob("*/images_png/*.png"))
        names = [image.relative_to(self.root).as_posix() for image in images]
        return [(name, name.replace("/images_png/", "/masks_png/")) for name in names]


MASK_SETS: dict[str, type[MaskSet]] = {"ade20k": ADE20K, "voc_aug": AugmentedVOC, "loveda": LoveDA}
