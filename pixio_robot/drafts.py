"""Files that are whole whenever they are there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def draft_of(file: Path) -> Iterator[Path]:
    """Give a place beside a file to write to, which takes the file's place in the end.

    Neither an error, nor a kill, nor another process that writes the same file leaves a part of one where a whole one
    is expected.
    """
    draft = file.with_name(f"{file.name}.{os.getpid()}.writing")
    draft.unlink(missing_ok=True)  # a killed process left it: in containers, one after the other has the same number
    try:
        yield draft
        os.replace(draft, file)
    finally:
        draft.unlink(missing_ok=True)


def write_whole(file: Path, text: str) -> None:
    """Write text in UTF-8, whole or not at all."""
    with draft_of(file) as draft:
        draft.write_text(text, encoding="utf-8")
