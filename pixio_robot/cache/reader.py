"""A finished feature cache, memory-mapped."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from torch import Tensor

from pixio_robot.cache.layout import REPAIR, TokenFile, open_group
from pixio_robot.cache.source import FrameSource
from pixio_robot.encoder import Encoder
from pixio_robot.errors import CacheError
from pixio_robot.tokens import Tokens


class FeatureCache:
    """A finished feature cache, memory-mapped. It can be sent to another process, which maps the same files.

    Attributes:
        path: The zarr group.
        attributes: What made it: encoder, data set, pooling, augmentation.
    """

    def __init__(self, path: Path, attributes: dict[str, Any]) -> None:
        self.path, self.attributes = path, attributes
        self._maps = {(file.camera, file.variant): file.map() for file in token_files(path, attributes)}
        clean = [file for file in token_files(path, attributes) if file.variant == 0]
        self._grids = {file.camera: file.grid for file in clean}
        self._sizes = {file.camera: file.seen for file in clean}

    @classmethod
    def open(
        cls, path: str | Path, *, encoder: Encoder | None = None, source: FrameSource | None = None
    ) -> "FeatureCache":
        """Open a cache for reading.

        Args:
            path: The zarr group.
            encoder: If given, the encoder that must have made it.
            source: If given, the frames that it must hold.

        Raises:
            CacheError: If it is missing, unfinished or cut short, or made by another encoder or from another data set.
        """
        path = Path(path)
        cache_of: dict[str, Any] = dict(open_group(path).attrs)
        if encoder is not None and cache_of["encoder_sha256"] != encoder.fingerprint:
            raise CacheError(
                f"{path} was built by the encoder {cache_of['encoder']!r} ({cache_of['encoder_sha256'][:12]}), "
                f"not by {encoder.provenance.get('name', 'unnamed')!r} ({encoder.fingerprint[:12]}): build a cache "
                "with this encoder, or load the one that built it."
            )
        if source is not None and cache_of["dataset_sha256"] != source.fingerprint:
            raise CacheError(
                f"{path} was built from another data set ({cache_of['frames']} frames, "
                f"{cache_of['dataset_sha256'][:12]}) than this one ({len(source)} frames, "
                f"{source.fingerprint[:12]}), or from an older state of it: build the cache anew."
            )
        done, chunks = progress(path, cache_of)
        if done < chunks:
            raise CacheError(f"{path} lacks {chunks - done} of its chunks: run the build again, it continues.")
        return cls(path, cache_of)

    def __reduce__(self) -> tuple[Any, ...]:
        """Send the path, not the maps."""
        return FeatureCache, (self.path, self.attributes)

    @property
    def cameras(self) -> list[str]:
        """The cameras' names."""
        return list(self.attributes["cameras"])

    @property
    def variants(self) -> int:
        """Number of augmented variants besides the clean frames."""
        return int(self.attributes["variants"])

    @property
    def nbytes(self) -> int:
        """Size in bytes of all tokens, of every camera and variant."""
        return sum(values.nbytes for values in self._maps.values())

    @property
    def row_checksums(self) -> np.ndarray:
        """Uint32 [frames]: those of the source."""
        return np.asarray(zarr.open_array(self.path / "row_checksums", mode="r")[:])

    def __len__(self) -> int:
        """Number of frames per camera."""
        return int(self.attributes["frames"])

    def size(self, camera: str) -> tuple[int, int]:
        """(height, width) in pixels at which the encoder saw a camera's frames."""
        self._find(camera, 0)
        return self._sizes[camera]

    def read(self, camera: str, rows: Tensor | np.ndarray | Sequence[int], variant: int = 0) -> Tokens:
        """Gather frames by global index through the memory map.

        Args:
            camera: One of ``cameras``.
            rows: Frame indices, [b] or of any other shape, such as [b t].
            variant: 0 for the clean frames, from 1 for augmented ones.

        Returns:
            Tokens in float16: classes [b c d], patches [b n d], led by the shape of ``rows``.

        Raises:
            CacheError: If there is no such camera, frame or variant, or the tokens are damaged.
        """
        values, rows = self._find(camera, variant), np.asarray(rows)
        if rows.size and not (rows.min() >= 0 and rows.max() < len(self)):
            raise CacheError(f"Rows {rows.min()} to {rows.max()} were asked of a cache of {len(self)} frames.")
        return self._split(camera, np.take(values, rows.astype(np.int64), axis=0))

    def load(self, camera: str, variant: int = 0) -> Tokens:
        """Read one camera's frames into memory: classes [frames c d], patches [frames n d], in float16.

        ``read`` needs no more memory than its rows, and serves caches that are larger than it.
        """
        mapped = self._find(camera, variant)
        values = np.fromfile(str(mapped.filename), mapped.dtype, count=mapped.size)  # no page fault for each 4 kB
        return self._split(camera, values.reshape(mapped.shape))

    def _find(self, camera: str, variant: int) -> np.memmap:
        if camera not in self.cameras:
            raise CacheError(f"{self.path} has no camera {camera!r}; it has {', '.join(self.cameras)}.")
        if (camera, variant) not in self._maps:
            raise CacheError(f"{self.path} has the augmented variants 1 to {self.variants}, not {variant}.")
        return self._maps[camera, variant]

    def _split(self, camera: str, values: np.ndarray) -> Tokens:
        tokens = torch.from_numpy(values)
        if tokens.numel() and not all(bound.isfinite() for bound in tokens.aminmax()):  # quick, and needs no memory
            raise CacheError(
                f"{self.path} holds NaN or infinity for {camera!r}, which no build writes: its file was damaged. "
                f"verify_cache(path, repair=True), or `pixio-cache verify --repair`, finds where. {REPAIR}"
            )
        classes = self.attributes["class_tokens"]
        return Tokens(tokens[..., :classes, :], tokens[..., classes:, :], self._grids[camera])


def token_files(path: Path, attributes: dict[str, Any]) -> list[TokenFile]:
    """The files of a cache, made or not, by camera and variant."""
    frames, chunk = attributes["frames"], attributes["chunk"]
    return [
        TokenFile(path, camera, variant, frames=frames, chunk=chunk)
        for camera in attributes["cameras"]
        for variant in range(attributes["variants"] + 1)
    ]


def progress(path: Path, attributes: dict[str, Any]) -> tuple[int, int]:
    """How many chunks of a cache are done, and how many there are, over all cameras and variants."""
    files = token_files(path, attributes)
    return sum(np.count_nonzero(file.marks()) for file in files), sum(file.chunks for file in files)
