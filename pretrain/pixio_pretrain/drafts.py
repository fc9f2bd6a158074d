"""Files that are whole whenever they are there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def draft_of(file: Path) -> Iterator[Path]:
    """Give a place beside a file to write to, which takes the file's place in the end: a kill leaves old or new."""
    draft = file.with_name(f"{file.name}.writing")
    yield draft
    os.replace(draft, file)
