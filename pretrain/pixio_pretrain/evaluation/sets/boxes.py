"""VOC and COCO detection: an image and the boxes of its objects."""

import json
from abc import ABC, abstractmethod
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from xml.etree import ElementTree as ET

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pixio_pretrain.evaluation.sets.layout import Layout, describe, read_image
from pixio_robot.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Objects:
    """The objects of an image.

    Attributes:
        boxes: left, top, right, bottom, in pixels from the image's corner, float32 [k 4].
        labels: Classes, from 0 [k].
        ignored: Bool [k]: neither found nor missed ("difficult" in VOC, crowds in COCO).
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    ignored: NDArray[np.bool_]


def make_objects(rows: list[tuple[list[float], int, bool]]) -> Objects:
    """Put (box, label, ignored) of each object side by side; there may be none."""
    return Objects(
        boxes=np.array([box for box, _, _ in rows], np.float32).reshape(-1, 4),
        labels=np.array([label for _, label, _ in rows], np.int64),
        ignored=np.array([ignored for _, _, ignored in rows], np.bool_),
    )


class BoxSet(ABC):
    """Images with boxes.

    Args:
        root: The data set's folder.
        part: "train" or "val".
        official: Refuse other numbers of images than the published ones.

    Attributes:
        layout: The published form.
        names: Of the classes.
        files: Image of each sample, below the root.
        objects: Of each sample.

    Raises:
        DataError: If the layout is another, numbers differ, or an annotation cannot be read.
    """

    layout: ClassVar[Layout]

    def __init__(self, root: Path, part: str, *, official: bool) -> None:
        self.root, self.part = root, part
        self.names, self.files, self.objects = self._find()
        self.layout.check_files(root, self.files)
        self.layout.check_count(root, part, len(self.files), official=official)
        for file, objects in zip(self.files, self.objects, strict=True):
            flat = (objects.boxes[:, 2:] <= objects.boxes[:, :2]).any(axis=1) & ~objects.ignored
            if flat.any():
                raise DataError(f"{root / file}: the box {objects.boxes[flat][0].tolist()} has no area.")

    @abstractmethod
    def _find(self) -> tuple[list[str], list[str], list[Objects]]:
        """List classes, images and their objects."""

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.files)

    def image(self, index: int) -> Image.Image:
        """One image, RGB.

        Raises:
            DataError: If it cannot be decoded.
        """
        return read_image(self.root / self.files[index])

    def describe(self) -> dict[str, Any]:
        """Which samples they are."""
        return describe(self.layout.name, self.part, self.files, classes=len(self.names))


VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


class VOC(BoxSet):
    """Trained on the trainval parts of 2007 and 2012, measured on the test part of 2007."""

    layout = Layout(
        name="VOC 2007 and 2012",
        counts={"train": 16_551, "val": 4_952},
        tree="""
ROOT/VOC2007/{JPEGImages/000001.jpg,Annotations/000001.xml,ImageSets/Main/{trainval,test}.txt}
ROOT/VOC2012/{JPEGImages/2007_000027.jpg,Annotations/2007_000027.xml,ImageSets/Main/trainval.txt}
""",
    )
    splits: ClassVar = {"train": (("VOC2007", "trainval"), ("VOC2012", "trainval")), "val": (("VOC2007", "test"),)}

    def _find(self) -> tuple[list[str], list[str], list[Objects]]:
        stems = [
            (year, name)
            for year, split in self.splits[self.part]
            for name in self.layout.read_list(self.root, f"{year}/ImageSets/Main/{split}.txt")
        ]
        self.layout.check_files(self.root, (f"{year}/Annotations/{name}.xml" for year, name in stems))
        objects = [self._read(self.root / f"{year}/Annotations/{name}.xml") for year, name in stems]
        return list(VOC_CLASSES), [f"{year}/JPEGImages/{name}.jpg" for year, name in stems], objects

    @staticmethod
    def _read(file: Path) -> Objects:
        rows = []
        try:
            for entry in ET.parse(file).iter("object"):
                name, box = entry.findtext("name", ""), entry.find("bndbox")
                if name not in VOC_CLASSES or box is None:
                    raise DataError(f"{file}: an object of class {name!r}; VOC's are {', '.join(VOC_CLASSES)}.")
                left, top, right, bottom = (float(box.findtext(side, "")) for side in ("xmin", "ymin", "xmax", "ymax"))
                hard = entry.findtext("difficult", "0").strip() == "1"
                # Pixels count from 1, and the last one is inside.
                rows.append(([left - 1, top - 1, right, bottom], VOC_CLASSES.index(name), hard))
        except (ET.ParseError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{file} is no annotation of VOC: {error}") from error
        return make_objects(rows)


class COCO(BoxSet):
    """COCO 2017 with 80 classes; training leaves images without objects out."""

    layout = Layout(
        name="COCO 2017",
        counts={"train": 117_266, "val": 5_000},
        tree="""
ROOT/train2017/000000000009.jpg
ROOT/val2017/000000000139.jpg
ROOT/annotations/instances_train2017.json
ROOT/annotations/instances_val2017.json
""",
    )

    def _find(self) -> tuple[list[str], list[str], list[Objects]]:
        name = f"annotations/instances_{self.part}2017.json"
        self.layout.check_files(self.root, [name])
        try:
            facts = json.loads((self.root / name).read_text())
            categories = sorted(facts["categories"], key=lambda category: category["id"])
            label = {category["id"]: number for number, category in enumerate(categories)}
            rows: dict[int, list[tuple[list[float], int, bool]]] = defaultdict(list)
            for entry in facts["annotations"]:
                x, y, w, h = entry["bbox"]
                crowd = bool(entry.get("iscrowd", 0))
                if entry["category_id"] not in label:
                    raise DataError(f"{self.root / name}: annotation {entry.get('id')} is of no listed category.")
                if crowd or min(w, h) > 0:
                    rows[entry["image_id"]].append(([x, y, x + w, y + h], label[entry["category_id"]], crowd))
            images = sorted(facts["images"], key=lambda image: image["id"])
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{self.root / name} is no annotation file of COCO: {error!r}") from error
        if self.part == "train":
            images = [image for image in images if any(not crowd for _, _, crowd in rows[image["id"]])]
        files = [f"{self.part}2017/{image['file_name']}" for image in images]
        return (
            [category["name"] for category in categories],
            files,
            [make_objects(rows[image["id"]]) for image in images],
        )


BOX_SETS: dict[str, type[BoxSet]] = {"voc": VOC, "coco": COCO}
