"""The frames that a cache is built from."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lerobot_policy_pixio.frames import DatasetFrames, open_dataset, row_checksums
from pixio_robot.errors import DataError


@pytest.mark.parametrize("dtype", ["video", "image"])
def test_frames_are_those_of_the_data_set(make_dataset: Callable[..., Path], dtype: str, tmp_path: Path) -> None:
    root = make_dataset(tmp_path / dtype, dtype=dtype)
    dataset, frames = open_dataset(root), DatasetFrames(root)
    assert len(frames) == len(dataset) == 34
    for camera in frames.cameras:
        read = frames.read(camera, 0, len(frames))
        assert read.dtype == torch.uint8
        for index in range(len(dataset)):
            item: Any = dataset[index]
            assert torch.equal(read[index], (item[camera] * 255).round().to(torch.uint8))


def test_any_run_of_frames_is_a_slice_of_all(dataset_root: Path) -> None:
    frames = DatasetFrames(dataset_root, ["observation.images.wrist"])
    whole = frames.read("observation.images.wrist", 0, len(frames))
    for start, stop in [(0, 1), (7, 12), (9, 23), (33, 34)]:
        assert torch.equal(frames.read("observation.images.wrist", start, stop), whole[start:stop])


def test_the_fingerprint_tells_data_sets_apart(
    dataset_root: Path, make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    copied = shutil.copytree(dataset_root, tmp_path / "elsewhere")
    assert DatasetFrames(copied).fingerprint == DatasetFrames(dataset_root).fingerprint
    other = make_dataset(tmp_path / "other", seed=1)
    assert DatasetFrames(other).fingerprint != DatasetFrames(dataset_root).fingerprint


def test_row_checksums_tell_frames_and_data_sets_apart(
    dataset_root: Path, make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    frames = DatasetFrames(dataset_root)
    checksums = frames.row_checksums()
    assert len(set(checksums.tolist())) == len(frames)
    item: Any = open_dataset(dataset_root)[20]
    state = item["observation.state"][None]
    assert row_checksums([int(item["episode_index"])], [float(item["timestamp"])], state) == checksums[20]
    assert row_checksums([0], [float(item["timestamp"])], state) != checksums[20]
    assert row_checksums([int(item["episode_index"])], [float(item["timestamp"])], state + 1e-6) != checksums[20]
    other = DatasetFrames(make_dataset(tmp_path / "other", seed=1)).row_checksums()
    assert not (other == checksums).any()


def test_frames_are_resized_only_where_they_need_it(dataset_root: Path) -> None:
    frames = DatasetFrames(dataset_root)
    assert frames.resize_to(64) is None
    assert frames.resize_to(32) == (32, 32)


def test_what_is_not_there_is_named(dataset_root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no camera 'observation.images.tip'.*observation.images.top"):
        DatasetFrames(dataset_root, ["observation.images.tip"])
    with pytest.raises(DataError, match=r"meta/info.json"):
        DatasetFrames(tmp_path)
    with pytest.raises(DataError, match=r"Frames 30 to 40 were asked of a data set of 34"):
        DatasetFrames(dataset_root).read("observation.images.top", 30, 40)
