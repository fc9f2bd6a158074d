"""What a data set's folder must hold, and what is said when it does not."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from pixio_pretrain.data.source import decode_image
from pixio_robot.errors import DataError, ImageError

LISTED = 8
"""Missing files that an error names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """The published form of a data set.

    Attributes:
        name: The data set's.
        tree: Its folders and files, as one would draw them.
        counts: Images of each part, as published.
    """

    name: str
    tree: str
    counts: dict[str, int]

    def refuse(self, root: Path, reason: str) -> DataError:
        """Make the error that says what is wrong in a folder, and what was expected there."""
        return DataError(f"{root} is not {self.name} as it is published: {reason}\nExpected:\n{self.tree.strip()}")

    def check_files(self, root: Path, files: Iterable[str]) -> None:
        """Refuse a folder that lacks some files; each subfolder is listed once.

        Args:
            root: The folder.
            files: Paths below it.

        Raises:
            DataError: Naming the first that are missing, and how many there are.
        """
        known: dict[str, set[str]] = {}
        missing = []
        for file in files:
            parent, _, name = file.rpartition("/")
            if parent not in known:
                folder = root / parent
                known[parent] = set(os.listdir(folder)) if folder.is_dir() else set()
            if name not in known[parent]:
                missing.append(file)
        if missing:
            more = f" and {len(missing) - LISTED} more" if len(missing) > LISTED else ""
            raise self.refuse(root, f"{len(missing)} files are missing: {', '.join(missing[:LISTED])}{more}.")

    def check_count(self, root: Path, part: str, found: int, *, official: bool) -> None:
        """Refuse a part without images or, where ``official``, of another size than the published one.

        Raises:
            DataError: Saying both numbers.
        """
        if not found:
            raise self.refuse(root, f"its part {part!r} has no images.")
        if official and found != self.counts[part]:
            raise self.refuse(
                root,
                f"its part {part!r} has {found} images, not {self.counts[part]}. Scores on another number compare to "
                "no published ones; official_counts=false goes on all the same, and the record says so.",
            )

    def read_list(self, root: Path, file: str) -> list[str]:
        """Read the lines of a list that comes with the data set.

        Raises:
            DataError: If it is not there.
        """
        self.check_files(root, [file])
        return [line.strip() for line in (root / file).read_text().splitlines() if line.strip()]


def describe(name: str, part: str, keys: Sequence[str], **facts: Any) -> dict[str, Any]:
    """Say which samples these are: a hash over their names, in order."""
    names = hashlib.sha256("\n".join(keys).encode()).hexdigest()
    return {"set": name, "part": part, "images": len(keys), "names": names, **facts}


def read_image(file: Path) -> Image.Image:
    """Read an RGB image of a labelled set, where none may be skipped.

    Raises:
        DataError: If it cannot be decoded.
    """
    try:
        return decode_image(file)
    except (ImageError, OSError) as error:
        raise DataError(f"{file} cannot be decoded: {error}") from error


def read_map(file: Path, image: Image.Image) -> Image.Image:
    """Read a map of labels or depths that belongs to an image, its values untouched.

    Raises:
        DataError: If it cannot be decoded, or has another size than the image.
    """
    try:
        with Image.open(file) as stored:
            stored.load()
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{file} cannot be decoded: {error}") from error
    if stored.size != image.size:
        raise DataError(f"{file} is {stored.size} pixels wide and high, and its image {image.size}.")
    return stored
