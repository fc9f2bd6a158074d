"""Frames in the memory of the device that trains, where their crops are cut, too.

Crops are a CPU core's work, and a GPU that trains a small encoder asks for more of them than its cores can cut. A
robot's frames are few enough to lie on it whole.
"""

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from pixio_pretrain.data.chance import Purpose, generator
from pixio_pretrain.data.order import Request
from pixio_pretrain.data.samples import BatchMaker
from pixio_pretrain.data.source import Frames, Source
from pixio_pretrain.data.workers import Made
from pixio_robot.errors import DataError, SettingError


class ResidentFrames(Dataset[Made]):
    """Makes the batches that are asked of it on the device that holds all frames.

    Args:
        source: Images with random access, all of one size.
        cut: What an objective makes of a batch of them.
        seed: Fixes chance.
        device: Where they lie.

    Raises:
        DataError: If the source is read in runs, or its images differ in size.
        ImageError: If an image cannot be decoded.
        SettingError: If they are more than the device can hold.
    """

    def __init__(self, source: Source, cut: BatchMaker, *, seed: int, device: torch.device) -> None:
        if not isinstance(source, Frames):
            raise DataError(
                f"loading.resident=true needs random access, and {source.describe()['kind']} are read in runs: "
                "leave it out, or train on what scripts/render_frames.py or a folder holds."
            )
        self._frames, self._cut, self._seed = source, cut, seed
        self._pixels = _read(source, device)

    def __getitem__(self, request: Request) -> Made:
        """Make one batch."""
        random = generator(self._seed, Purpose.SAMPLE, request.position)
        batch = self._frames.batch(request.indices, self._pixels, self._cut, random)
        return Made(batch, [self._frames.key(index) for index in request.indices], {}, request.after)


def _read(frames: Frames, device: torch.device) -> torch.Tensor:
    """All images, uint8 [n 3 h w]."""
    width, height = frames.image(0).size
    needed = len(frames) * 3 * height * width
    if device.type == "cuda" and needed > 0.8 * (free := torch.cuda.mem_get_info(device)[0]):
        raise SettingError(
            f"loading.resident=true: {len(frames)} frames of {width} x {height} pixels need {needed / 2**30:.1f} GiB, "
            f"and {device} has {free / 2**30:.1f} GiB free. Take fewer or smaller ones, or leave it out."
        )
    pixels = torch.empty(len(frames), 3, height, width, dtype=torch.uint8, device=device)
    for index in tqdm(range(len(frames)), desc="to the device", unit="image"):
        image = np.array(frames.image(index))
        if image.shape[:2] != (height, width):
            raise DataError(
                f"loading.resident=true needs images of one size: {frames.key(0)} has {width} x {height} pixels, "
                f"{frames.key(index)} has {image.shape[1]} x {image.shape[0]}."
            )
        pixels[index] = torch.from_numpy(image).permute(2, 0, 1)
    return pixels
