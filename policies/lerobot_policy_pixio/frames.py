"""The frames of a LeRobotDataset in order, for the feature cache: whole runs are decoded, not one seek per frame."""

import hashlib
import json
import zlib
from collections.abc import Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from lerobot.configs import PolicyFeature
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.datasets.video_utils import decode_video_frames
from lerobot.utils.constants import OBS_STATE
from lerobot.utils.feature_utils import dataset_to_policy_features
from numpy.typing import ArrayLike
from torch import Tensor

from pixio_robot.errors import DataError

DECODER = "pyav"  # comes with LeRobot on every platform, and gives the same pixels on all of them


def open_dataset(root: str | Path) -> LeRobotDataset:
    """Open a LeRobotDataset v3 folder without asking the hub.

    Raises:
        DataError: If there is none.
    """
    root = Path(root)
    if not (root / "meta" / "info.json").is_file():
        raise DataError(f"There is no LeRobotDataset at {root.absolute()}: it would hold meta/info.json.")
    return LeRobotDataset(f"local/{root.name}", root=root, video_backend=DECODER)


def row_checksums(episodes: ArrayLike, times: ArrayLike, state: ArrayLike | None) -> np.ndarray:
    """Tell frames apart by what a training batch says of them besides their images.

    Args:
        episodes: Index of each frame's episode [n].
        times: Time of each frame in its episode [n], in seconds.
        state: Proprioception [n ...], as the data set holds it; absent where it holds none.

    Returns:
        CRC-32 of each frame's row, uint32 [n].
    """
    columns = [np.asarray(episodes, "<i8"), np.asarray(times, "<f4")]
    columns += [] if state is None else [np.asarray(state, "<f4")]
    rows = [np.ascontiguousarray(column).reshape(len(column), -1).view("u1") for column in columns]
    return np.fromiter((zlib.crc32(row) for row in np.concatenate(rows, axis=1)), "u4", count=len(rows[0]))


class DatasetFrames:
    """The frames of a LeRobotDataset, a ``FrameSource`` whose rows are global frame indices.

    Args:
        dataset: The data set, or its folder.
        cameras: Keys such as "observation.images.top"; every camera when absent.

    Attributes:
        dataset: The data set.
        cameras: The cameras' keys.

    Raises:
        DataError: If there is no such data set or camera, or only some of its episodes were opened.
    """

    def __init__(self, dataset: LeRobotDataset | str | Path, cameras: Sequence[str] | None = None) -> None:
        self.dataset = dataset if isinstance(dataset, LeRobotDataset) else open_dataset(dataset)
        if self.dataset.episodes is not None:
            raise DataError("Frames are addressed by global index: open the data set with all of its episodes.")
        meta = self.dataset.meta
        known = [key for key in meta.camera_keys if key not in meta.depth_keys]
        self.cameras = tuple(known if cameras is None else cameras)
        missing = [camera for camera in self.cameras if camera not in known]
        if missing:
            raise DataError(f"{meta.root} has no camera {missing[0]!r}; its cameras are: {', '.join(known) or 'none'}.")

    def __len__(self) -> int:
        """Number of frames per camera."""
        return self.dataset.meta.total_frames

    @property
    def policy_features(self) -> dict[str, PolicyFeature]:
        """The data set's features as a policy knows them; of its cameras those that are among ``cameras``."""
        dataset = self.dataset
        known = dataset_to_policy_features(dataset.features)
        hidden = set(dataset.meta.camera_keys) - set(self.cameras)
        return {name: feature for name, feature in known.items() if name not in hidden}

    def row_checksums(self) -> np.ndarray:
        """Uint32 [frames], see ``row_checksums``."""
        columns = ["episode_index", "timestamp"] + [OBS_STATE] * (OBS_STATE in self.dataset.features)
        table: Any = self.dataset.hf_dataset.with_format("numpy", columns=columns)[:]
        state = np.stack(list(table[OBS_STATE])) if OBS_STATE in columns else None
        return row_checksums(table["episode_index"], table["timestamp"], state)

    @property
    def episodes(self) -> datasets.Dataset:
        """The table of episodes: which frames and which parts of the videos are whose."""
        episodes = self.dataset.meta.episodes
        assert episodes is not None, "an opened data set has read its episodes"
        return episodes

    @property
    def fingerprint(self) -> str:
        """Sha-256 over the data set's features, episodes, tables and videos."""
        return self._fingerprint

    @property
    def statistics_fingerprint(self) -> str:
        """Sha-256 over the data set's statistics, by which states and actions are normalised."""
        told = json.dumps(self.dataset.meta.stats, sort_keys=True, default=lambda values: np.asarray(values).tolist())
        return hashlib.sha256(told.encode()).hexdigest()

    @cached_property
    def _fingerprint(self) -> str:
        meta = self.dataset.meta
        digest = hashlib.sha256(json.dumps([meta.fps, meta.total_frames, meta.features], sort_keys=True).encode())
        for kind, suffix in (("data", "parquet"), ("videos", "mp4")):
            for path in sorted((meta.root / kind).rglob(f"*.{suffix}")):
                digest.update(path.relative_to(meta.root).as_posix().encode())
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        for name in self._span_columns:
            digest.update(np.asarray(self.episodes[name]).tobytes())
        return digest.hexdigest()

    def read(self, camera: str, start: int, stop: int) -> Tensor:
        """Frames ``start`` to ``stop`` of one camera: uint8 [n 3 h w], the pixels that ``dataset[i]`` gives.

        Raises:
            DataError: If there are no such frames.
        """
        if not 0 <= start < stop <= len(self):
            raise DataError(f"Frames {start} to {stop} were asked of a data set of {len(self)}.")
        if camera not in self.dataset.meta.video_keys:
            rows = self.dataset.hf_dataset.with_format("numpy", columns=[camera])[start:stop][camera]
            return torch.from_numpy(np.stack(list(rows))).permute(0, 3, 1, 2)
        where = [self._locate(camera, row) for row in range(start, stop)]
        runs = [
            decode_video_frames(path, [time for _, time in run], self.dataset.tolerance_s, DECODER, return_uint8=True)
            for path, run in groupby(where, key=lambda place: place[0])
        ]
        return torch.cat(runs)

    def spread(self, camera: str, count: int) -> Tensor:
        """Read so many frames of one camera, or all if there are fewer, evenly spread: uint8 [n 3 h w]."""
        rows = torch.linspace(0, len(self) - 1, min(count, len(self))).long().tolist()
        return torch.cat([self.read(camera, row, row + 1) for row in rows])

    def resize_to(self, side: int) -> tuple[int, int] | None:
        """The ``size`` of a cache whose encoder sees ``side`` pixels a side: None if every camera gives that."""
        shapes = {tuple(self.dataset.features[camera]["shape"][:2]) for camera in self.cameras}
        return None if shapes == {(side, side)} else (side, side)

    def _locate(self, camera: str, row: int) -> tuple[Path, float]:
        """The video file of a frame, and its time in it in seconds."""
        path, start = self._videos[camera][np.searchsorted(self._ends, row, side="right")]
        return path, start + self._times[row]

    @cached_property
    def _videos(self) -> dict[str, list[tuple[Path, float]]]:
        """Per camera and episode, the video file and the time at which the episode starts in it."""
        meta = self.dataset.meta
        return {
            camera: [
                (meta.root / meta.get_video_file_path(episode, camera), start)
                for episode, start in enumerate(self.episodes[f"videos/{camera}/from_timestamp"])
            ]
            for camera in meta.video_keys
        }

    @cached_property
    def _span_columns(self) -> list[str]:
        columns = self.episodes.column_names
        return sorted(
            name
            for name in columns
            if name.startswith("dataset_") or (name.startswith("videos/") and name.endswith("timestamp"))
        )

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.asarray(self.episodes["dataset_to_index"])

    @cached_property
    def _times(self) -> list[float]:
        """Time of each frame in its episode, rounded to float32 as the data set stores it."""
        return self.dataset.hf_dataset.data.column("timestamp").to_pylist()
