"""Episodes as videos that every browser plays."""

from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from pixio_robot.drafts import draft_of


def write_video(path: Path, frames: Iterable[NDArray[np.uint8]]) -> None:
    """Write RGB pictures [h w 3] as H.264 in MP4, 30 per second; odd sides lose a pixel.

    Pictures are taken one by one, so that a long film needs little memory. The file appears once it is whole, and is
    readable from its first byte on.
    """
    frames = iter(frames)
    first = next(frames)
    height, width = (side // 2 * 2 for side in first.shape[:2])
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        draft_of(path) as draft,
        av.open(str(draft), "w", format="mp4", options={"movflags": "faststart"}) as container,
    ):
        stream = container.add_stream("libx264", rate=30, options={"crf": "18", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in chain([first], frames):
            picture = np.ascontiguousarray(frame[:height, :width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def side_by_side(pixels: Mapping[str, NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Put the pictures of all cameras [h w 3] in a row, each at the top, black below the lower ones."""
    tallest = max(len(picture) for picture in pixels.values())
    padded = [np.pad(picture, ((0, tallest - len(picture)), (0, 0), (0, 0))) for picture in pixels.values()]
    return np.concatenate(padded, axis=1)
