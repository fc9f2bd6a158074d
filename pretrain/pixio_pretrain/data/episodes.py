"""What the tables of a LeRobotDataset say: cameras, episodes, and where in the videos each one lies."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pixio_robot.errors import DataError, UnknownNameError

LEROBOT_KEYFRAMES = 2
"""Frames from one keyframe to the next that LeRobot writes unless told otherwise; another number costs time only."""


@dataclass(frozen=True, slots=True)
class Camera:
    """The videos of one camera.

    Attributes:
        key: Such as "observation.images.top".
        files: The file of each episode, [n].
        starts: The time in it at which each episode begins, seconds, [n].
        keyframes: Frames from one keyframe to the next.
    """

    key: str
    files: list[Path]
    starts: NDArray[np.float64]
    keyframes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Episodes:
    """A LeRobotDataset v3 with videos.

    Attributes:
        root: Its folder.
        fps: Frames per second.
        lengths: Frames of each episode, [n].
        cameras: Those that were chosen.
        fingerprint: A hash over the tables that describe all of the data.
    """

    root: Path
    fps: float
    lengths: NDArray[np.int64]
    cameras: list[Camera]
    fingerprint: str

    @classmethod
    def read(cls, root: Path, cameras: Sequence[str] | None = None) -> "Episodes":
        """Read the tables.

        Args:
            root: The data set's folder.
            cameras: Keys of the cameras; None for all.

        Raises:
            DataError: If the folder holds no LeRobotDataset v3 with videos.
            UnknownNameError: If there is no such camera.
        """
        file = root / "meta" / "info.json"
        try:
            info = json.loads(file.read_text())
            version, fps, features = info["codebase_version"], float(info["fps"]), info["features"]
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{root} holds no LeRobotDataset that can be read: {file}: {error!r}") from error
        if not version.startswith("v3"):
            raise DataError(f"{root} holds a LeRobotDataset {version}; convert it to v3.0 with LeRobot's own script.")
        known = {key: feature for key, feature in features.items() if _shows_colour(feature)}
        if not known:
            raise DataError(f"{root} has no camera that was stored as video; its features are {', '.join(features)}.")
        for key in cameras or ():
            if key not in known:
                raise UnknownNameError("camera", key, known)
        chosen = list(known) if cameras is None else list(cameras)
        table = _read_table(root, chosen)
        return cls(
            root=root,
            fps=fps,
            lengths=table["length"].astype(np.int64),
            cameras=[_camera(root, info, known[key], key, table) for key in chosen],
            fingerprint=_hash(file, root / "meta" / "stats.json"),
        )


def _shows_colour(feature: dict[str, Any]) -> bool:
    facts = feature.get("info") or {}
    depth = facts.get("is_depth_map", facts.get("video.is_depth_map", False))
    return feature.get("dtype") == "video" and not depth


def _camera(root: Path, info: dict[str, Any], feature: dict[str, Any], key: str, table: dict[str, Any]) -> Camera:
    where = zip(table[f"videos/{key}/chunk_index"], table[f"videos/{key}/file_index"], strict=True)
    path = info["video_path"]
    files = [root / path.format(video_key=key, chunk_index=chunk, file_index=file) for chunk, file in where]
    keyframes = (feature.get("info") or {}).get("video.g") or LEROBOT_KEYFRAMES
    return Camera(key, files, table[f"videos/{key}/from_timestamp"], int(keyframes))


def _read_table(root: Path, cameras: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The columns that say where the videos of each episode are, in the order of the episodes."""
    places = ("chunk_index", "file_index", "from_timestamp")
    columns = ["episode_index", "length", *(f"videos/{camera}/{place}" for camera in cameras for place in places)]
    try:
        tables = [pq.read_table(file, columns=columns) for file in sorted((root / "meta/episodes").rglob("*.parquet"))]
        table = pa.concat_tables(tables).sort_by("episode_index")
        return {name: table[name].to_numpy() for name in columns}
    except (OSError, KeyError, pa.ArrowException) as error:
        raise DataError(f"The table of episodes in {root / 'meta/episodes'} cannot be read: {error}") from error


def _hash(*files: Path) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes() if file.is_file() else b"")
    return digest.hexdigest()
