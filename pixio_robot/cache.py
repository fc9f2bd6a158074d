"""The feature cache: a frozen encoder runs once per frame, and policies train from what it said.

On disk it is a zarr v3 group that anyone can open: one float16 array per camera, [frames, class tokens + patches,
width], in uncompressed chunks, so that reading is a memory map. Its attributes say which encoder, data set and pooling
made it; a ``done`` array marks each chunk that is whole, so that a killed build goes on where it stopped.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import zarr
from huggingface_hub.utils import tqdm
from torch import Tensor

from pixio_robot.encoder import Encoder
from pixio_robot.errors import CacheError
from pixio_robot.images import resize
from pixio_robot.tokens import Tokens

FORMAT = 1


class FrameSource(Protocol):
    """Frames that can be encoded: a data set with one or more cameras, addressed by global frame index."""

    @property
    def cameras(self) -> Sequence[str]:
        """The cameras' names."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identifies the content: another or a changed data set has another fingerprint."""
        ...

    def __len__(self) -> int:
        """Number of frames per camera."""
        ...

    def read(self, camera: str, start: int, stop: int) -> Tensor:
        """Frames ``start`` to ``stop`` of one camera: uint8 [n 3 h w]."""
        ...


def build_cache(
    path: str | Path,
    encoder: Encoder,
    source: FrameSource,
    *,
    grid: int | None = None,
    size: tuple[int, int] | None = None,
    batch_size: int = 64,
    chunk: int = 256,
) -> "FeatureCache":
    """Encode every frame of a data set once.

    A build that was killed continues; a finished one is opened as it is. The result is the same either way.

    Args:
        path: The zarr group, made if absent.
        encoder: The frozen encoder.
        source: The frames.
        grid: Average the patches to grid x grid tokens before storing; every patch is kept when absent.
        size: Resize frames to (height, width) pixels first, bilinearly; as they come when absent.
        batch_size: Frames per encoder pass.
        chunk: Frames per chunk on disk, the unit that is lost by a kill.

    Raises:
        CacheError: If ``path`` holds a cache of another encoder, data set or setting, or something else.
    """
    path = Path(path)
    if not len(source) or not source.cameras:
        raise CacheError("The data set has no frames or no cameras to encode.")
    identity = {
        "format": FORMAT,
        "encoder": encoder.provenance.get("name", "unnamed"),
        "encoder_sha256": encoder.fingerprint,
        "encoder_dtype": str(next(encoder.parameters()).dtype).removeprefix("torch."),
        "class_tokens": encoder.spec.class_tokens,
        "width": encoder.spec.width,
        "size": list(size) if size else None,
        "pooled_to": grid,
        "dataset_sha256": source.fingerprint,
        "frames": len(source),
        "cameras": list(source.cameras),
        "chunk": chunk,
    }
    group = _open_or_start(path, identity)
    with tqdm(total=len(source) * len(source.cameras), desc="caching features", unit="frame") as progress:
        for camera in source.cameras:
            for index in range(-(-len(source) // chunk)):
                start, stop = index * chunk, min((index + 1) * chunk, len(source))
                if not _is_done(group, camera, index):
                    tokens = _encode(encoder, source.read(camera, start, stop), grid, size, batch_size)
                    _store(group, camera, index, tokens, identity)
                progress.update(stop - start)
    return FeatureCache.open(path, encoder=encoder, source=source)


class FeatureCache:
    """A finished feature cache, memory-mapped.

    Attributes:
        path: The zarr group.
        attributes: What made it: encoder, data set, pooling.
    """

    def __init__(self, path: Path, group: zarr.Group) -> None:
        self.path = path
        self.attributes: dict[str, Any] = dict(group.attrs)
        self._maps = {camera: self._map(group, camera) for camera in self.cameras}
        self._grids = {camera: tuple(_array(group, camera).attrs["grid"]) for camera in self.cameras}  # type: ignore[arg-type]

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
            CacheError: If it is missing, unfinished, or made by another encoder or from another data set.
        """
        path = Path(path)
        group = _open(path)
        cache_of: dict[str, Any] = dict(group.attrs)
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
        missing = _missing_chunks(group, cache_of)
        if missing:
            raise CacheError(f"{path} lacks {missing} of its chunks: run the build again, it continues.")
        return cls(path, group)

    @property
    def cameras(self) -> list[str]:
        """The cameras' names."""
        return list(self.attributes["cameras"])

    def __len__(self) -> int:
        """Number of frames per camera."""
        return int(self.attributes["frames"])

    def read(self, camera: str, rows: Tensor | np.ndarray | Sequence[int]) -> Tokens:
        """Gather frames by global index through the memory map.

        Args:
            camera: One of ``cameras``.
            rows: [b] frame indices.

        Returns:
            Tokens in float16: classes [b c d], patches [b n d].

        Raises:
            CacheError: If there is no such camera or frame.
        """
        rows = np.asarray(rows)
        maps = self._find(camera)
        if rows.size and not (rows.min() >= 0 and rows.max() < len(self)):
            raise CacheError(f"Rows {rows.min()} to {rows.max()} were asked of a cache of {len(self)} frames.")
        out = np.empty((len(rows), *maps[0].shape[1:]), dtype=maps[0].dtype)
        chunk = self.attributes["chunk"]
        for index in np.unique(rows // chunk):
            here = rows // chunk == index
            out[here] = maps[index][rows[here] % chunk]
        return self._split(camera, torch.from_numpy(out))

    def load(self, camera: str) -> Tokens:
        """Read one camera's frames into memory: classes [frames c d], patches [frames n d], in float16."""
        whole = np.concatenate(self._find(camera))[: len(self)]
        return self._split(camera, torch.from_numpy(whole))

    def _find(self, camera: str) -> list[np.memmap]:
        if camera not in self._maps:
            raise CacheError(f"{self.path} has no camera {camera!r}; it has {', '.join(self.cameras)}.")
        return self._maps[camera]

    def _split(self, camera: str, tokens: Tensor) -> Tokens:
        classes = self.attributes["class_tokens"]
        return Tokens(tokens[:, :classes], tokens[:, classes:], self._grids[camera])

    def _map(self, group: zarr.Group, camera: str) -> list[np.memmap]:
        """Map each chunk's file: uncompressed and of one shard, it is the array's bytes and nothing else."""
        array = _array(group, camera)
        files = [self.path / camera / "c" / str(index) / "0" / "0" for index in range(array.nchunks)]
        return [np.memmap(file, dtype="<f2", mode="r", shape=array.chunks) for file in files]


def _encode(
    encoder: Encoder, frames: Tensor, grid: int | None, size: tuple[int, int] | None, batch_size: int
) -> Tokens:
    parts = [encoder(resize(batch, size)) for batch in frames.split(batch_size)]
    parts = [part if grid is None else part.pool(grid) for part in parts]
    return Tokens(
        torch.cat([part.classes for part in parts]), torch.cat([part.patches for part in parts]), parts[0].grid
    ).map(lambda x: x.to("cpu", torch.float16))


def _store(group: zarr.Group, camera: str, index: int, tokens: Tokens, identity: dict[str, Any]) -> None:
    values = torch.cat([tokens.classes, tokens.patches], dim=1).numpy()
    if not np.isfinite(values).all():
        raise CacheError(f"The encoder's output for {camera!r} overflows float16; it cannot be cached.")
    if f"done/{camera}" not in group:
        chunks = (identity["chunk"], *values.shape[1:])
        array = group.create_array(
            camera,
            shape=(identity["frames"], *values.shape[1:]),
            chunks=chunks,
            dtype="<f2",
            compressors=None,
            filters=None,
            attributes={"grid": list(tokens.grid)},
            config={"write_empty_chunks": True},
            overwrite=True,
        )
        group.create_array(f"done/{camera}", shape=(array.nchunks,), chunks=(1,), dtype="u1", fill_value=0)
    start = index * identity["chunk"]
    _array(group, camera)[start : start + len(values)] = values
    _array(group, f"done/{camera}")[index] = 1


def _open_or_start(path: Path, identity: dict[str, Any]) -> zarr.Group:
    if not path.exists() or not any(path.iterdir()):
        return zarr.create_group(path, attributes=identity)
    group = _open(path)
    found = dict(group.attrs)
    differing = [key for key in identity if json.dumps(found.get(key)) != json.dumps(identity[key])]
    if differing:
        told = "; ".join(f"{key} is {found.get(key)!r} there, {identity[key]!r} here" for key in differing)
        raise CacheError(f"{path} holds a cache of something else ({told}). Choose another path, or delete it.")
    return group


def _open(path: Path) -> zarr.Group:
    try:
        group = zarr.open_group(path, mode="r+")
    except (FileNotFoundError, ValueError) as error:
        raise CacheError(f"There is no feature cache at {path.absolute()}.") from error
    if group.attrs.get("format") != FORMAT:
        raise CacheError(f"{path} is a zarr group, but no feature cache of format {FORMAT}.")
    return group


def _array(group: zarr.Group, name: str) -> zarr.Array:
    array = group[name]
    if not isinstance(array, zarr.Array):
        raise CacheError(f"{name!r} should be an array in {group.store_path}.")
    return array


def _is_done(group: zarr.Group, camera: str, index: int) -> bool:
    return f"done/{camera}" in group and bool(_array(group, f"done/{camera}")[index])


def _missing_chunks(group: zarr.Group, attributes: dict[str, Any]) -> int:
    chunks = -(-attributes["frames"] // attributes["chunk"]) * len(attributes["cameras"])
    marks = [f"done/{camera}" for camera in attributes["cameras"]]
    return chunks - sum(int(np.asarray(_array(group, mark)[:]).sum()) for mark in marks if mark in group)
