import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from pixio_pretrain.data import Frames, open_frames, open_source, split_episodes
from pixio_pretrain.data import store as stores
from pixio_pretrain.data.crops import CHANCES, crop_image, draw_box, place_boxes
from pixio_pretrain.data.folder import ImageFolder
from pixio_pretrain.data.skips import Skipped
from pixio_pretrain.data.store import FrameStore
from pixio_robot.errors import DataError, ImageError, SettingError


def write_images(folder: Path, *names: str, side: int = 20) -> Path:
    random = np.random.default_rng(0)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(folder / name)
    return folder


def test_a_store_is_read_with_its_episodes_tasks_and_keys(store: Path) -> None:
    frames = open_frames(store)
    assert len(frames) == 48
    assert frames.task_names == ["red", "green", "blue"]
    assert frames.tasks is not None
    assert np.asarray(frames.image(0)).shape == (40, 40, 3)
    assert np.asarray(frames.image(0))[..., frames.tasks[0]].max() == 220
    assert frames.key(5) == "1/5"
    assert json.loads(json.dumps(frames.describe()))["suite"] == "squares"


def test_a_store_too_large_for_memory_is_read_by_chunks(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (11, 6, 5, 3), dtype=np.uint8)
    group = zarr.create_group(tmp_path / "chunked", attributes={"complete": True})
    group.create_array("frames", data=pixels, chunks=(4, 6, 5, 3))
    group.create_array("episode", data=np.arange(11))
    frames = FrameStore(tmp_path / "chunked", in_memory=0)
    assert not isinstance(frames._pixels, np.ndarray)
    for index in (10, 0, 7, 3, 4):
        assert np.array_equal(np.asarray(frames.image(index)), pixels[index])


@pytest.mark.parametrize(("told", "whole"), [(None, True), ("1", True), ("2", False)])
def test_a_store_is_read_whole_where_it_fits_into_half_of_the_free_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, told: str | None, whole: bool
) -> None:
    group = zarr.create_group(tmp_path / "store", attributes={"complete": True})
    group.create_array("frames", data=np.zeros((10, 4, 4, 3), np.uint8))  # 480 bytes
    group.create_array("episode", data=np.arange(10))
    monkeypatch.setattr(stores, "free_memory", lambda: 1000)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if told:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", told)  # as torchrun tells each of them
    frames = FrameStore(tmp_path / "store")
    assert isinstance(frames._pixels, np.ndarray) is whole
    assert ("chunk by chunk" in caplog.text) is not whole


def test_an_unfinished_store_is_refused(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "half", attributes={"complete": False})
    group.create_array("frames", data=np.zeros((2, 8, 8, 3), np.uint8))
    group.create_array("episode", data=np.zeros(2, np.int32))
    with pytest.raises(DataError, match="not finished"):
        open_frames(tmp_path / "half")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pixels": np.zeros(2)}, r"holds the arrays \['pixels'\]"),
        ({"frames": np.zeros((2, 8, 8, 3), np.float32), "episode": np.zeros(2)}, "must be uint8"),
        ({"frames": np.zeros((2, 3, 8, 8), np.uint8), "episode": np.zeros(2)}, "must be uint8"),
    ],
)
def test_a_foreign_group_is_refused(arrays: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "foreign", attributes={"complete": True})
    for name, values in arrays.items():
        group.create_array(name, data=values)
    with pytest.raises(DataError, match=message):
        open_frames(tmp_path / "foreign")


def test_a_zarr_array_in_place_of_a_group_is_refused(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "array", data=np.zeros(3))
    with pytest.raises(DataError, match="no zarr group"):
        open_frames(tmp_path / "array")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no images"):
        open_source(tmp_path)


def test_a_location_where_nothing_lies_is_answered_with_the_nearest_one_and_all_kinds(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    with pytest.raises(DataError, match=r"Did you mean .*/frames") as error:
        open_source(tmp_path / "fames")
    assert "tar shards" in str(error.value)
    assert "synthetic:" in str(error.value)


def test_a_folder_of_images_and_shards_is_refused_and_shards_are_found_at_any_depth(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b" / "c"
    deep.mkdir(parents=True)
    with tarfile.open(deep / "0.tar", "w"):
        pass
    source = open_source(tmp_path)
    assert source.describe()["kind"] == "tar shards"
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "one.png")
    assert open_source(tmp_path).describe()["kind"] == "image folder"
    (deep / "0.tar").rename(tmp_path / "a" / "0.tar")
    with pytest.raises(DataError, match=r"images, such as a/one\.png, and tar shards, such as a/0\.tar.*\*\*/\*\.tar"):
        open_source(tmp_path)


def test_a_stride_for_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="belong to a LeRobotDataset"):
        open_source(write_images(tmp_path, "1.png"), stride=2)


def test_images_of_one_folder_are_one_episode_where_there_are_several_folders(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.JPG", "b/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (30, 20), 90).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    frames = open_frames(tmp_path)
    assert isinstance(frames, ImageFolder)
    assert frames.episodes.tolist() == [0, 0, 1]
    assert [frames.key(index) for index in range(3)] == ["a/1.png", "a/2.JPG", "b/1.png"]
    assert frames.image(0).mode == "RGB"
    assert open_frames(tmp_path / "a").episodes.tolist() == [0, 1]


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    for name in ("here/b/1.png", "elsewhere/2.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.new("L", (30, 20), 90).save(tmp_path / name)
    for link, place in (("a", "here/b"), ("c", "elsewhere"), ("d", "elsewhere"), ("b/loop", "here"), ("e", "nowhere")):
        (tmp_path / "here" / link).symlink_to(tmp_path / place)
    (tmp_path / "here/3.png").symlink_to(tmp_path / "elsewhere/2.png")
    frames = open_frames(tmp_path / "here")
    assert [frames.key(index) for index in range(3)] == ["3.png", "b/1.png", "c/2.png"]
    assert len(frames) == 3


@pytest.mark.parametrize("damage", ["cut", "header", "empty", "foreign"])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp"])
def test_every_damaged_image_raises_one_error(damage: str, suffix: str, tmp_path: Path) -> None:
    file = write_images(tmp_path, f"1.{suffix}", side=64) / f"1.{suffix}"
    whole = file.read_bytes()
    damaged = {
        "cut": whole[: len(whole) // 2],
        "header": whole[:8] + bytes(16) + whole[24:],
        "empty": b"",
        "foreign": b"not an image",
    }
    file.write_bytes(damaged[damage])
    frames = open_frames(tmp_path)
    with pytest.raises(ImageError):
        frames.image(0)


def test_a_visit_gives_every_sample_once_and_names_what_it_skips(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png", "b.png", "c.png")
    (tmp_path / "b.png").write_bytes(b"not an image")
    skipped = Skipped()
    assert [key for key, _ in open_source(tmp_path).visit(skipped)] == ["a.png", "c.png"]
    assert list(skipped) == ["b.png"]


def test_a_source_of_which_nothing_can_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"Not one sample can be read\. a\.png: "):
        list(open_source(tmp_path).visit())


def test_too_many_unreadable_samples_are_an_error_that_names_the_first() -> None:
    skipped = Skipped(2)
    skipped.add("a", "torn", seen=9)
    skipped.add("a", "torn", seen=9)
    skipped.add("b", "torn", seen=9)
    with pytest.raises(
        DataError, match=r"3 samples cannot be read; max_skipped=2 allows 2\. a: torn; b: torn; c: torn\."
    ):
        skipped.add("c", "torn", seen=9)


def test_a_share_of_samples_may_be_unreadable_and_ten_in_any_case() -> None:
    skipped = Skipped(0.01)
    for number in range(10):
        skipped.add(str(number), "torn", seen=0)
    skipped.add("10", "torn", seen=1100)
    with pytest.raises(DataError, match="12 samples"):
        skipped.add("11", "torn", seen=1199)


def test_a_part_keeps_keys_episodes_and_tasks(store: Path) -> None:
    frames = open_frames(store)
    train, held_out = frames.split(0.25)
    assert isinstance(held_out, Frames)
    assert len(train) + len(held_out) == len(frames)
    assert set(train.episodes).isdisjoint(held_out.episodes)
    assert held_out.tasks is not None
    for index in range(len(held_out)):
        whole = int(held_out.key(index).split("/")[1])
        assert np.array_equal(np.asarray(held_out.image(index)), np.asarray(frames.image(whole)))
        assert held_out.episodes[index] == frames.episodes[whole]


def test_joined_sources_keep_images_apart_by_source(store: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "images", "a/0.png", "a/1.png", "b/0.png")
    twice = open_frames(f"{store}+{store}")
    assert twice.describe() == {"kind": "joined sources", "frames": 96, "parts": [open_frames(store).describe()] * 2}
    assert twice.task_names == ["red", "green", "blue"] * 2
    assert twice.tasks is not None
    assert twice.tasks.tolist() == [*twice.tasks[:48], *twice.tasks[:48] + 3]
    assert len(np.unique(twice.episodes)) == 24
    assert [twice.key(index) for index in (0, 47, 48, 95)] == ["0:0/0", "0:11/47", "1:0/0", "1:11/47"]
    assert np.array_equal(twice.image(48 + 5), open_frames(store).image(5))
    mixed = open_frames(f"{store}+{tmp_path / 'images'}")
    assert mixed.tasks is None
    assert mixed.places is None
    assert [mixed.key(index) for index in (47, 48, 50)] == ["0:11/47", "1:a/0.png", "1:b/0.png"]
    assert np.asarray(mixed.image(50)).shape == (20, 20, 3)
    assert len(np.unique(mixed.episodes)) == 14


def test_a_source_that_is_read_in_runs_cannot_be_joined_nor_one_that_is_not_there(store: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "images", "0.png")
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        tar.add(tmp_path / "images" / "0.png", "0.png")
    with pytest.raises(DataError, match=r"joined by '\+' if they have random access, and tar shards are read in runs"):
        open_source(f"{store}+{tmp_path / 'shard.tar'}")
    with pytest.raises(DataError, match=r"There is nothing at .*nowhere"):
        open_source(f"{store}+{tmp_path / 'nowhere'}")
    write_images(tmp_path / "one+another", "0.png", "1.png")
    assert len(open_frames(tmp_path / "one+another")) == 2  # a folder of that name is no sum


def test_held_out_episodes_are_whole_and_disjoint_from_those_trained_on() -> None:
    episodes = np.random.default_rng(0).integers(0, 40, size=500)
    train, held_out = split_episodes(episodes, 0.1)
    assert np.array_equal(np.sort(np.concatenate([train, held_out])), np.arange(500))
    assert set(episodes[train]).isdisjoint(episodes[held_out])
    assert len(set(episodes[held_out])) == 4
    assert np.array_equal(split_episodes(episodes, 0.1)[1], held_out)


def test_one_episode_cannot_be_split_and_two_always_can() -> None:
    with pytest.raises(DataError, match="at least two"):
        split_episodes(np.zeros(9, np.int64), 0.5)
    train, held_out = split_episodes(np.array([0, 0, 1]), 0.999)
    assert train.size
    assert held_out.size


@pytest.mark.parametrize(("size", "scale"), [((100, 60), 0.2), ((60, 60), 0.5), ((64, 70), 0.95), ((40, 150), 0.2)])
def test_crops_lie_inside_the_image_and_keep_their_share_and_shape(size: tuple[int, int], scale: float) -> None:
    left, top, right, bottom = place_boxes(np.random.default_rng(0).random((2000, CHANCES)), size, scale).T
    assert min(left.min(), top.min()) >= 0
    assert right.max() <= size[0] + 1e-9
    assert bottom.max() <= size[1] + 1e-9
    width, height = right - left, bottom - top
    shares, shapes = width * height / (size[0] * size[1]), width / height
    assert scale - 1e-9 <= shares.min() < shares.max() <= 1
    assert 3 / 4 - 1e-9 <= shapes.min() < shapes.max() <= 4 / 3 + 1e-9
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        image = torch.empty(1, 10 * size[1], 10 * size[0])
        crops = np.array([RandomResizedCrop.get_params(image, [scale, 1], [3 / 4, 4 / 3])[2:] for _ in range(2000)])
    theirs = crops.prod(axis=1) / image.numel()
    assert abs(shares.mean() - theirs.mean()) < 4 * shares.std() / 1000**0.5 + 1e-3


def test_an_image_too_long_for_both_bounds_keeps_the_shape() -> None:
    (box,) = place_boxes(np.random.default_rng(0).random((1, CHANCES)), (60, 200), 0.5)
    assert box.tolist() == [0, 60, 60, 140]


def test_a_crop_scale_of_one_takes_the_whole_of_a_square_frame(store: Path) -> None:
    frame = open_frames(store).image(3)
    box = draw_box(frame.size, 1.0, np.random.default_rng(0))
    assert np.array_equal(crop_image(frame, box, 40).transpose(1, 2, 0), np.asarray(frame))
    assert draw_box((100, 60), 1.0, np.random.default_rng(0)) == (20, 0, 80, 60)
