"""Tar shards in webdataset's format, read in order, from folders or from anything that fsspec opens."""

import hashlib
import posixpath
import re
import tarfile
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, Self

import fsspec
import numpy as np

from pixio_pretrain.data.source import IMAGE_SUFFIXES, Entry, Stream
from pixio_robot.errors import DataError, ImageError

_ALL = (0.0, 1.0)


class TarShards(Stream):
    """Images in tar files; each file is a run, and the key is "shard/member".

    Files in them other than images are passed over. A torn shard gives what lies before the tear, and the tear counts
    as one unreadable sample with the name of the shard.

    Args:
        urls: Paths or fsspec URLs of the shards.
        part: Of each shard, the samples whose hash, in [0, 1), lies in [part[0], part[1]).

    Raises:
        DataError: If there are no shards.
    """

    def __init__(self, urls: Sequence[str], *, part: tuple[float, float] = _ALL) -> None:
        if not urls:
            raise DataError("There are no tar shards.")
        self.urls = list(urls)
        self.part = part
        self._root = _common_folder(self.urls)

    @classmethod
    def find(cls, pattern: str) -> "TarShards":
        """Find shards.

        Args:
            pattern: A path or an fsspec URL: of a tar file, of a folder, which is searched with all folders in it, with
                wildcards ("*", "?", "[ab]"), or with braces ("{000..127}", "{train,extra}").

        Raises:
            DataError: If nothing fits.
        """
        urls: list[str] = []
        for url in expand_braces(pattern):
            try:
                filesystem, path = fsspec.url_to_fs(str(Path(url).expanduser()) if "://" not in url else url)
                if filesystem.isdir(path):
                    path = posixpath.join(path, "**", "*.tar")
                found = sorted(filesystem.glob(path)) if re.search(r"[*?\[]", path) else [path]
            except (OSError, ValueError, ImportError) as error:
                raise DataError(f"Cannot look for tar shards at {url}: {error}") from error
            if not found or not filesystem.exists(found[0]):
                raise DataError(f"There are no tar shards at {url}.")
            urls += [filesystem.unstrip_protocol(name) if "://" in url else name for name in found]
        return cls(urls)

    @property
    def runs(self) -> int:
        """How many shards there are."""
        return len(self.urls)

    def read(self, run: int, start: int = 0) -> Iterator[Entry]:
        """Read the images of a shard, from the ``start``-th on."""
        shard, number = self._name(self.urls[run]), 0
        try:
            filesystem, path = fsspec.url_to_fs(self.urls[run])
            with filesystem.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r|*", tarinfo=_Header) as tar:
                for member in tar:
                    tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue], it would remember all
                    if not member.isfile() or not member.name.lower().endswith(IMAGE_SUFFIXES):
                        continue
                    if number >= start and self._is_part(member.name):
                        content = tar.extractfile(member)
                        assert content is not None, "a regular file has content"
                        yield Entry(number, f"{shard}/{member.name}", content.read())
                    number += 1
        except (tarfile.TarError, OSError, EOFError, *_http_errors()) as error:
            yield Entry(number, shard, ImageError(f"cannot be read beyond {number} images: {error}"), torn=True)

    def split(self, share: float) -> tuple["TarShards", "TarShards"]:
        """Hold whole shards out; where there is but one, samples by a hash of their names."""
        if self.part != _ALL:
            raise DataError("These shards are already divided by sample.")
        if self.runs == 1:
            return TarShards(self.urls, part=(share, 1.0)), TarShards(self.urls, part=(0.0, share))
        count = min(max(1, round(share * self.runs)), self.runs - 1)
        held_out = set(np.random.default_rng(0).permutation(self.runs)[:count].tolist())
        parts = [[url for run, url in enumerate(self.urls) if (run in held_out) == held] for held in (False, True)]
        return TarShards(parts[0]), TarShards(parts[1])

    def describe(self) -> dict[str, Any]:
        """Which shards they are, by a hash over their names."""
        names = hashlib.sha256("\n".join(map(self._name, self.urls)).encode()).hexdigest()
        return {"kind": "tar shards", "shards": self.runs, "names": names, "part": list(self.part)}

    def _name(self, url: str) -> str:
        return url.removeprefix(self._root)

    def _is_part(self, member: str) -> bool:
        """Tell by the sample's name, which webdataset ends at the first dot of the file's name."""
        if self.part == _ALL:
            return True
        folder, name = posixpath.split(member)
        digest = hashlib.sha256(posixpath.join(folder, name.split(".")[0]).encode()).digest()
        return self.part[0] <= int.from_bytes(digest[:8]) / 2**64 < self.part[1]


def _http_errors() -> tuple[type[Exception], ...]:
    """What fsspec raises where a connection breaks off; nothing where it cannot read HTTP at all."""
    try:
        from aiohttp import ClientError
    except ImportError:
        return ()
    return (ClientError,)


class _Header(tarfile.TarInfo):
    """A header that must be there: without this, a tar that ends early or is damaged passes for one that is over."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise  # the end mark
            raise tarfile.ReadError(f"no end mark, but {error}") from error


def expand_braces(pattern: str) -> list[str]:
    """Write "{000..127}" and "{train,extra}" out, in any number and nested."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if not match:
        return [pattern]
    if bounds := re.fullmatch(r"(\d+)\.\.(\d+)", match[1]):
        options = [f"{number:0{len(bounds[1])}d}" for number in range(int(bounds[1]), int(bounds[2]) + 1)]
    else:
        options = match[1].split(",")
    return [
        url
        for option in options
        for url in expand_braces(f"{pattern[: match.start()]}{option}{pattern[match.end() :]}")
    ]


def _common_folder(urls: Sequence[str]) -> str:
    """The folder, with its slash, below which all of them lie."""
    folders = zip(*(url.split("/")[:-1] for url in urls), strict=False)
    return "".join(f"{names[0]}/" for names in takewhile(lambda names: len(set(names)) == 1, folders))
