"""ImageNet-1K: one class per image, from folders or from webdataset's tar shards."""

import io
import tarfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pixio_pretrain.data.source import IMAGE_SUFFIXES, decode_image
from pixio_pretrain.evaluation.sets.layout import Layout, describe, read_image
from pixio_robot.errors import DataError, ImageError

CLASSES = 1000
PARTS = ("train", "val")

IMAGENET = Layout(
    name="ImageNet-1K",
    counts={"train": 1_281_167, "val": 50_000},
    tree="""
ROOT/train/n01440764/n01440764_10026.JPEG     a folder per class: the same ones in both parts
ROOT/val/n01440764/ILSVRC2012_val_00000293.JPEG
or, as in timm/imagenet-1k-wds,
ROOT/imagenet1k-train-0000.tar                members NAME.jpg and NAME.cls (the class, from 0, as text)
ROOT/imagenet1k-validation-00.tar
""",
)


class ClassSet(ABC):
    """Images of one class each.

    Attributes:
        labels: Classes, from 0 [n].
        classes: How many classes there are.
    """

    labels: NDArray[np.int64]
    classes: int

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """One image, RGB.

        Raises:
            DataError: If it cannot be decoded.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Which images they are, in JSON's types."""


class FolderClasses(ClassSet):
    """A part of ImageNet in folders, one per class."""

    def __init__(self, root: Path, part: str) -> None:
        names = sorted(path.name for path in (root / "train").iterdir() if path.is_dir())
        here = {path.name for path in (root / part).iterdir() if path.is_dir()}
        if strange := sorted(here - set(names)):
            raise IMAGENET.refuse(root, f"{part} has classes that train has not: {', '.join(strange[:8])}.")
        self.root, self.part, self.classes = root, part, len(names)
        self.files: list[str] = []
        labels = []
        for label, name in enumerate(names):
            folder = root / part / name
            files = (
                sorted(p.name for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES) if name in here else []
            )
            self.files += [f"{part}/{name}/{file}" for file in files]
            labels += [label] * len(files)
        self.labels = np.array(labels, np.int64)

    def image(self, index: int) -> Image.Image:
        """One image, RGB."""
        return read_image(self.root / self.files[index])

    def describe(self) -> dict[str, Any]:
        """Which images they are."""
        return describe("ImageNet-1K", self.part, self.files, classes=self.classes)


class _Member(NamedTuple):
    shard: int
    offset: int
    size: int


class ShardClasses(ClassSet):
    """A part of ImageNet in tar shards. Their headers are read once; an image is then read from where it lies."""

    def __init__(self, root: Path, part: str) -> None:
        self.root, self.part, self.classes = root, part, CLASSES
        self.shards = sorted(root.glob(f"*{part}*.tar"))
        self.members: list[_Member] = []
        self.keys: list[str] = []
        labels: list[int] = []
        for number, shard in enumerate(self.shards):
            images, classes = _read_headers(shard, number)
            if images.keys() != classes.keys():
                lonely = sorted(images.keys() ^ classes.keys())
                raise IMAGENET.refuse(root, f"{shard.name} has images without classes, or the reverse: {lonely[:8]}.")
            self.keys += [f"{shard.name}/{key}" for key in images]
            self.members += images.values()
            labels += [classes[key] for key in images]
        self.labels = np.array(labels, np.int64)

    def image(self, index: int) -> Image.Image:
        """One image, RGB."""
        member = self.members[index]
        with self.shards[member.shard].open("rb") as file:
            file.seek(member.offset)
            content = file.read(member.size)
        try:
            return decode_image(io.BytesIO(content))
        except ImageError as error:
            raise DataError(f"{self.keys[index]} cannot be decoded: {error}") from error

    def describe(self) -> dict[str, Any]:
        """Which images they are."""
        return describe("ImageNet-1K", self.part, self.keys, classes=self.classes)


def _read_headers(shard: Path, number: int) -> tuple[dict[str, _Member], dict[str, int]]:
    """Find a shard's images, and read its classes, both by webdataset's key."""
    images: dict[str, _Member] = {}
    classes: dict[str, int] = {}
    try:
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, suffix = member.name.rpartition(".")
                if f".{suffix.lower()}" in IMAGE_SUFFIXES:
                    images[key] = _Member(number, member.offset_data, member.size)
                elif suffix == "cls":
                    content = tar.extractfile(member)
                    assert content is not None, "a regular file has content"
                    classes[key] = int(content.read())
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise DataError(f"{shard} cannot be read: {error}") from error
    return images, classes


def open_classes(root: Path, part: str, *, official: bool) -> ClassSet:
    """Open a part of ImageNet, or of anything in its layout.

    Args:
        root: Holds both parts.
        part: "train" or "val".
        official: Refuse other numbers of images than ImageNet-1K's.

    Raises:
        DataError: If the layout is another, a class is out of range, or numbers differ.
    """
    kind = ShardClasses if any(root.glob("*.tar")) else FolderClasses
    if kind is FolderClasses:
        IMAGENET.check_files(root, PARTS)
    found = kind(root, part)
    IMAGENET.check_count(root, part, len(found), official=official)
    low, high = int(found.labels.min()), int(found.labels.max())
    if low < 0 or high >= found.classes:
        raise IMAGENET.refuse(root, f"classes of {part} run from {low} to {high}, not from 0 to {found.classes - 1}.")
    return found
