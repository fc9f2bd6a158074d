"""The videos of a LeRobotDataset, decoded run by run.

A random frame costs opening a file, a seek, and the decoding of everything since the keyframe before. Neighbours cost
their own decoding only; so a run is a few keyframes and all that hangs on them, and the shuffle buffer mixes the runs
of many episodes. LeRobot itself is not needed: its tables are parquet, its videos MP4.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixio_pretrain.data.episodes import Episodes
from pixio_pretrain.data.source import Entry, Stream, split_episodes
from pixio_robot.errors import DataError, ImageError, SettingError

RUN = 32
"""Frames of a run, at least."""

OPEN_FILES = 8
"""Videos that are kept open for the next run."""


@dataclass(frozen=True, slots=True)
class Run:
    """Frames of one camera in one episode.

    Attributes:
        camera: Index of the camera.
        episode: Number of the episode.
        frames: Which frames of it, ascending.
    """

    camera: int
    episode: int
    frames: range


class LeRobotVideo(Stream):
    """Frames of a LeRobotDataset v3 with videos; the key is "camera/episode/frame".

    Args:
        root: The data set's folder.
        cameras: Keys such as "observation.images.top"; None for all.
        stride: Take one frame in so many; neighbours are nearly alike.
        part: Numbers of the episodes to use; None for all.

    Raises:
        DataError: If the folder holds no such data set, or nothing is installed that decodes videos.
        UnknownNameError: If there is no such camera.
        SettingError: If the stride is not positive.
    """

    def __init__(
        self,
        root: Path,
        *,
        cameras: Sequence[str] | None = None,
        stride: int = 1,
        part: NDArray[np.int64] | None = None,
    ) -> None:
        if stride < 1:
            raise SettingError(f"stride must be at least 1, not {stride}.")
        if find_spec("av") is None:
            raise DataError("Reading videos needs av: pip install 'pixio-pretrain[video]'.")
        self.episodes = Episodes.read(root, cameras)
        self.stride = stride
        self.part = np.arange(len(self.episodes.lengths)) if part is None else part
        self._runs = self._cut()
        self._idle: dict[tuple[int, Path], _Video] = {}

    @property
    def runs(self) -> int:
        """How many runs there are."""
        return len(self._runs)

    def __len__(self) -> int:
        """Number of frames, of all cameras."""
        return len(self.episodes.cameras) * int((-(-self.episodes.lengths[self.part] // self.stride)).sum())

    def locate(self, run: int) -> Run:
        """Say which frames a run holds."""
        camera, episode, start = (int(number) for number in self._runs[run])
        stop = min(start + self._span(camera), int(self.episodes.lengths[episode]))
        return Run(camera, episode, range(-(-start // self.stride) * self.stride, stop, self.stride))

    def read(self, run: int, start: int = 0) -> Iterator[Entry]:
        """Decode the frames of a run, from the ``start``-th on."""
        here = self.locate(run)
        camera = self.episodes.cameras[here.camera]
        path, begins = camera.files[here.episode], float(camera.starts[here.episode])
        name = (os.getpid(), path)  # a forked process must not share its parent's place in the file
        video = self._idle.pop(name, None)
        for number in range(start, len(here.frames)):
            frame = here.frames[number]
            content: NDArray[np.uint8] | ImageError
            try:
                video = video or _Video(path, fps=self.episodes.fps, keyframes=camera.keyframes)
                content = video.frame(begins + frame / self.episodes.fps)
            except ImageError as error:
                content, video = error, None
            yield Entry(number, f"{camera.key}/{here.episode}/{frame}", content)
        if video:
            self._idle[name] = video
            while len(self._idle) > OPEN_FILES:
                self._idle.pop(next(iter(self._idle)))

    def split(self, share: float) -> tuple["LeRobotVideo", "LeRobotVideo"]:
        """Hold whole episodes out, with all of their cameras."""
        keys = [camera.key for camera in self.episodes.cameras]
        train, held_out = (
            LeRobotVideo(self.episodes.root, cameras=keys, stride=self.stride, part=self.part[indices])
            for indices in split_episodes(self.part, share)
        )
        return train, held_out

    def describe(self) -> dict[str, Any]:
        """Which frames they are, by the data set's own tables."""
        return {
            "kind": "LeRobot videos",
            "cameras": [camera.key for camera in self.episodes.cameras],
            "episodes": len(self.part),
            "frames": len(self),
            "stride": self.stride,
            "tables": self.episodes.fingerprint,
        }

    def __getstate__(self) -> dict[str, Any]:
        """Go to a worker process without the open videos."""
        return self.__dict__ | {"_idle": {}}

    def _span(self, camera: int) -> int:
        """Frames from the start of one run to that of the next: whole keyframe distances."""
        distance = self.episodes.cameras[camera].keyframes
        return -(-max(RUN, self.stride) // distance) * distance

    def _cut(self) -> NDArray[np.int64]:
        """Cut the episodes into runs: camera, episode and first frame of each, [n 3]."""
        tables: list[NDArray[np.int64]] = []
        for camera in range(len(self.episodes.cameras)):
            span = self._span(camera)
            counts = -(-self.episodes.lengths[self.part] // span)
            episodes = np.repeat(self.part, counts)
            firsts = np.arange(len(episodes)) - np.repeat(np.cumsum(counts) - counts, counts)
            tables.append(np.stack([np.full_like(episodes, camera), episodes, firsts * span], axis=1))
        return np.concatenate(tables)


class _Video:
    """A video file that is read forwards, and sought only where that decodes less.

    Args:
        path: The file.
        fps: Frames per second.
        keyframes: Frames from one keyframe to the next.
    """

    def __init__(self, path: Path, *, fps: float, keyframes: int) -> None:
        import av
        from av.error import FFmpegError

        self._errors = (FFmpegError, OSError, ValueError, IndexError)
        try:
            self._container = av.open(path)
            self._stream = self._container.streams.video[0]
            self._tick = float(self._stream.time_base or 0)
            self._stream.codec_context.thread_count = 1  # workers are the threads
        except self._errors as error:
            raise ImageError(f"{path.name}: {error}") from error
        self._path = path
        self._step = 1 / fps
        self._keyframes = keyframes
        self._decoded: Iterator[Any] = iter(())
        self._time = -np.inf

    def frame(self, time: float) -> NDArray[np.uint8]:
        """Decode the frame at a time in seconds: uint8 [h w 3].

        Raises:
            ImageError: If there is none, or it cannot be decoded.
        """
        try:
            if not 0.5 < (time - self._time) / self._step < self._keyframes + 0.5:  # times are rounded
                self._seek(time)
            pixels = self._forward(time)
            if pixels is None:  # where frames are stored out of order, a seek may end behind its aim
                self._seek(max(0.0, time - 1))
                pixels = self._forward(time)
        except self._errors as error:
            raise ImageError(f"{self._path.name} at {time:.3f} s: {error}") from error
        if pixels is None:
            raise ImageError(f"{self._path.name} has no frame at {time:.3f} s.")
        return pixels

    def _seek(self, time: float) -> None:
        self._container.seek(round(time / self._tick), stream=self._stream, backward=True)
        self._decoded = self._container.decode(self._stream)

    def _forward(self, time: float) -> NDArray[np.uint8] | None:
        """Decode up to a time; None where the next frame is of a later one."""
        for frame in self._decoded:
            self._time = float(frame.pts or 0) * self._tick
            if self._time > time - self._step / 2:
                return frame.to_ndarray(format="rgb24") if self._time < time + self._step / 2 else None
        return None
