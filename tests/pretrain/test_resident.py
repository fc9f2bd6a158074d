import tarfile
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from pixio_pretrain.data import Loader, ResidentFrames, Source, open_frames, open_source
from pixio_pretrain.data.chance import Purpose, generator
from pixio_pretrain.data.crops import CHANCES, crop_image, crop_images, place_boxes
from pixio_pretrain.objectives import Objective, create_objective
from pixio_robot.errors import DataError, SettingError


def pixio(**changes: Any) -> Objective:
    sizes = {"width": 32, "depth": 1, "heads": 2, "patch_size": 8, "image_size": 32, "class_tokens": 1}
    decoder = {"decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2, "mask_block": 2}
    return create_objective("pixio", **sizes, **decoder, **changes)


def load(source: Source, objective: Objective, *, resident: bool) -> Loader:
    cut = objective.batches(crop_scale=0.3)
    there = ResidentFrames(source, cut, seed=3, device=torch.device("cpu")) if resident else None
    return Loader(source, objective.samples(crop_scale=0.3), batch_size=8, seed=3, resident=there)


def crop_each(images: NDArray[np.uint8], boxes: NDArray[np.float64], side: int) -> NDArray[np.uint8]:
    """What Pillow cuts out of pictures [b h w 3]: [b 3 side side]."""
    pairs = zip(images, boxes.tolist(), strict=True)
    return np.stack([crop_image(Image.fromarray(image), tuple(box), side) for image, box in pairs])


def assert_alike(ours: torch.Tensor, theirs: NDArray[np.uint8]) -> None:
    """Equal but for roundings: one grey level, in few places."""
    apart = np.abs(ours.numpy().astype(int) - theirs)
    assert apart.max() <= 1
    assert (apart > 0).mean() < 0.05


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(20, 90),
    width=st.integers(20, 90),
    side=st.sampled_from([16, 32, 64]),
    scale=st.sampled_from([0.1, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
def test_crops_of_a_batch_are_pillows(height: int, width: int, side: int, scale: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    noise = random.integers(0, 256, size=(3, height, width, 3), dtype=np.uint8)
    images = np.stack([np.asarray(Image.fromarray(one).filter(ImageFilter.GaussianBlur(1))) for one in noise])
    boxes = place_boxes(random.random((3, CHANCES)), (width, height), scale)
    ours = crop_images(torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(boxes), side)
    assert_alike(ours, crop_each(images, boxes, side))


def test_resident_frames_come_in_the_order_of_the_others_with_crops_of_their_own(store: Path) -> None:
    source = open_frames(str(store))
    objective = pixio(mirror=True)
    here = list(islice(load(source, objective, resident=True), 12))
    there = list(islice(load(source, objective, resident=False), 12))
    assert [one.keys for one in here] == [one.keys for one in there]
    flipped = 0
    for number, one in enumerate(here):
        random = generator(3, Purpose.SAMPLE, 8 * number)
        images = np.stack([np.asarray(source.image(int(key.split("/")[1]))) for key in one.keys])
        boxes = place_boxes(random.random((8, CHANCES)), (40, 40), 0.3)
        flips = random.random(8) < 0.5
        flipped += int(flips.sum())
        crops = crop_each(images, boxes, 32)
        assert_alike(one.batch["images"], np.where(flips[:, None, None, None], crops[..., ::-1], crops))
        assert np.array_equal(one.batch["noise"].numpy(), random.random((8, 4), dtype=np.float32))
    assert 0 < flipped < 96


def test_what_cannot_lie_on_a_device_is_refused(tmp_path: Path) -> None:
    cut, cpu = pixio().batches(crop_scale=0.3), torch.device("cpu")
    for name, side in (("a", 32), ("b", 48)):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (side, 32)).save(tmp_path / "images" / name / "0.png")
    with pytest.raises(DataError, match=r"one size: a/0\.png has 32 x 32 pixels, b/0\.png has 48 x 32"):
        ResidentFrames(open_source(str(tmp_path / "images")), cut, seed=0, device=cpu)
    with pytest.raises(SettingError, match="pixpro makes its samples on the CPU"):
        create_objective("pixpro", encoder="resnet18").batches(crop_scale=0.3)
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        tar.add(tmp_path / "images" / "a" / "0.png", "0.png")
    with pytest.raises(DataError, match="needs random access, and tar shards are read in runs"):
        ResidentFrames(open_source(str(tmp_path / "shard.tar")), cut, seed=0, device=cpu)
