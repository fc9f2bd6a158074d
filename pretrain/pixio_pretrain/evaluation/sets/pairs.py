"""What data sets of images with a map for each, of depth or of labels, have in common."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pixio_pretrain.evaluation.sets.layout import Layout, read_image, read_map
from pixio_robot.errors import DataError


class PairedSet(ABC):
    """Images, each with a map of its size.

    Args:
        root: The data set's folder.
        part: "train" or "val".
        official: Refuse other numbers of images than the published ones.

    Attributes:
        layout: The published form.
        pairs: Image and map of each sample, below the root.

    Raises:
        DataError: If the layout is another, or numbers differ.
    """

    layout: ClassVar[Layout]

    def __init__(self, root: Path, part: str, *, official: bool) -> None:
        self.root, self.part = root, part
        self.pairs = self._find()
        self.layout.check_files(root, (file for pair in self.pairs for file in pair))
        self.layout.check_count(root, part, len(self.pairs), official=official)

    @abstractmethod
    def _find(self) -> list[tuple[str, str]]:
        """List the samples."""

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.pairs)

    def _read(self, index: int) -> tuple[Image.Image, NDArray[Any]]:
        """Read an image, and the numbers of its map as they are stored [h w].

        Raises:
            DataError: If a file cannot be decoded, or sizes differ.
        """
        image_file, map_file = self.pairs[index]
        image = read_image(self.root / image_file)
        stored = np.asarray(read_map(self.root / map_file, image))
        if stored.ndim != 2:
            raise DataError(f"{self.root / map_file} has {stored.ndim} axes; a map of depth or labels has two.")
        return image, stored
