"""The files of a cache: one array per camera and variant, and a mark for each of its chunks.

An array has a single shard whose inner chunks lie one behind the other, uncompressed. So its file is the frames' bytes
in order, then zarr's index of the chunks: readers of zarr fetch only the chunks that they need, and we map the file.
A file per chunk would not do: a mapped file stays open, and systems open a thousand.
"""

import json
import math
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BytesCodec, ShardingCodec

from pixio_robot.errors import CacheError

FORMAT = 2
REPAIR = "Run the build again: it makes what is missing or damaged anew."


def open_group(path: Path) -> zarr.Group:
    """Open the group of a cache, finished or not.

    Raises:
        CacheError: If there is none, or it is of another format.
    """
    try:
        group = zarr.open_group(path, mode="r")
    except (FileNotFoundError, ValueError, json.JSONDecodeError) as error:
        raise CacheError(f"There is no feature cache at {path.absolute()}.") from error
    if group.attrs.get("format") != FORMAT:
        raise CacheError(f"{path} is a zarr group, but no feature cache of format {FORMAT}.")
    return group


class TokenFile:
    """The tokens of one camera at one variant: [frames, n, width] of float16.

    Args:
        root: The cache's folder.
        camera: The camera's name.
        variant: 0 for the clean frames, from 1 for augmented ones.
        frames: Number of frames.
        chunk: Frames per chunk, the unit that is written, marked and lost by a kill.
    """

    def __init__(self, root: Path, camera: str, variant: int, *, frames: int, chunk: int) -> None:
        self.root, self.camera, self.variant, self.frames, self.chunk = root, camera, variant, frames, chunk
        self.chunks = math.ceil(frames / chunk)
        self.name = camera if variant == 0 else f"variants/{variant}/{camera}"
        self.file = root / self.name / "c" / "0" / "0" / "0"
        self.marks_file = root / "marks" / self.name / "c" / "0"

    @property
    def exists(self) -> bool:
        """Whether anything was written: the marks come last."""
        return self.marks_file.is_file() and self.marks_file.stat().st_size == 4 * self.chunks

    @property
    def metadata(self) -> dict[str, Any]:
        """Shape and attributes of the zarr array."""
        return json.loads((self.root / self.name / "zarr.json").read_text())

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches."""
        rows, columns = self.metadata["attributes"]["grid"]
        return rows, columns

    @property
    def seen(self) -> tuple[int, int]:
        """(height, width) in pixels of the frames that the encoder saw."""
        height, width = self.metadata["attributes"]["seen"]
        return height, width

    def create(self, tokens: tuple[int, int], *, grid: tuple[int, int], seen: tuple[int, int]) -> None:
        """Lay out empty files, in the place of whatever an earlier build left before it marked a chunk."""
        group = zarr.open_group(self.root, mode="r+")
        group.create_array(
            self.name,
            shape=(self.frames, *tokens),
            chunks=(self.chunks * self.chunk, *tokens),
            dtype="<f2",
            serializer=ShardingCodec(
                chunk_shape=(self.chunk, *tokens), codecs=[BytesCodec()], index_codecs=[BytesCodec()]
            ),
            compressors=None,
            filters=None,
            attributes={"grid": list(grid), "seen": list(seen)},
            overwrite=True,
        )
        self._fit()
        group.create_array(
            f"marks/{self.name}",
            shape=(self.chunks,),
            chunks=(self.chunks,),
            dtype="<u4",
            compressors=None,
            filters=None,
            fill_value=0,
            overwrite=True,
        )
        self.marks_file.parent.mkdir(parents=True, exist_ok=True)
        _write_through(self.marks_file, 0, bytes(4 * self.chunks), mode="wb")

    def marks(self) -> np.ndarray:
        """Uint32 [chunks]: 0 for a chunk that is not written, else its CRC-32."""
        return np.fromfile(self.marks_file, "<u4") if self.exists else np.zeros(self.chunks, "<u4")

    def write(self, chunk: int, values: np.ndarray) -> None:
        """Write one chunk [n, tokens, width], and mark it once it is on the disk."""
        if self.marks()[chunk]:
            self.unmark([chunk])
        values = np.ascontiguousarray(values, "<f2")
        _write_through(self.file, chunk * self.chunk * values[0].nbytes, values.data.cast("B"))
        _write_through(self.marks_file, 4 * chunk, _mark(values))

    def unmark(self, chunks: list[int]) -> None:
        """Forget chunks: the next build makes them anew."""
        for chunk in chunks:
            _write_through(self.marks_file, 4 * chunk, bytes(4))

    def map(self) -> np.memmap:
        """Map the frames for reading.

        Raises:
            CacheError: If the file is missing or has another size than its data.
        """
        if not self.fits:
            told = f"has {self.file.stat().st_size} bytes, not {self._size()}" if self.file.is_file() else "is missing"
            raise CacheError(f"{self.file}, which holds {self.camera!r}, {told}. {REPAIR}")
        return np.memmap(self.file, "<f2", mode="r", shape=self._shape())

    @property
    def fits(self) -> bool:
        """Whether the file has the size of its data."""
        return self.exists and self.file.is_file() and self.file.stat().st_size == self._size()

    def damaged(self) -> list[int]:
        """Marked chunks whose bytes are not those that were written."""
        if not self.exists:
            return []
        marks, row = self.marks(), self._chunk_bytes() // self.chunk
        bad = []
        for chunk in np.flatnonzero(marks).tolist():
            frames = min(self.chunk, self.frames - chunk * self.chunk)
            values = np.zeros(0, "u1")
            if self.file.is_file():
                values = np.fromfile(self.file, "u1", count=frames * row, offset=chunk * self.chunk * row)
            if len(values) != frames * row or _mark(values) != marks[chunk].tobytes():
                bad.append(chunk)
        return bad

    def repair(self) -> list[int]:
        """Give the file its size back, and forget the chunks that are damaged; say which those were."""
        damaged = self.damaged()
        self.unmark(damaged)
        if self.exists and not self.fits:
            self._fit()
        return damaged

    def _fit(self) -> None:
        """Make the file, or bring it to its size, and write zarr's index behind the chunks."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("ab") as file:
            file.truncate(self._size())
        step = self._chunk_bytes()
        index = np.array([[chunk * step, step] for chunk in range(self.chunks)], "<u8")
        _write_through(self.file, self.chunks * step, index.tobytes())

    def _shape(self) -> tuple[int, int, int]:
        frames, tokens, width = self.metadata["shape"]
        return frames, tokens, width

    def _size(self) -> int:
        """Of the file in bytes: the chunks, and 16 for each of them in zarr's index."""
        return self.chunks * (self._chunk_bytes() + 16)

    def _chunk_bytes(self) -> int:
        _, tokens, width = self._shape()
        return self.chunk * tokens * width * 2


def _mark(values: np.ndarray) -> bytes:
    """The CRC-32 of a chunk; 0 stands for a chunk that is not written."""
    return np.array(zlib.crc32(values) or 1, "<u4").tobytes()


def _write_through(file: Path, offset: int, data: bytes | memoryview, *, mode: str = "r+b") -> None:
    """Write into a file, and return when the disk has it."""
    with file.open(mode) as handle:
        handle.seek(offset)
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
