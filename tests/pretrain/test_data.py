import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from PIL import Image

from pixio_pretrain.config import RunConfig
from pixio_pretrain.data.crops import draw_box
from pixio_pretrain.data.frames import FrameStore, ImageFolder, open_frames, split_episodes
from pixio_pretrain.data.views import Views
from pixio_pretrain.objectives import create_objective
from pixio_pretrain.run import start
from pixio_robot.errors import DataError, ImageError


def views(store: Path, *, seed: int = 0, crop_scale: float = 0.5, image_size: int = 32) -> Views:
    frames = open_frames(store)
    objective = create_objective("pixio", image_size=image_size, patch_size=8, mask_block=1, depth=1, decoder_depth=1)
    samples = objective.samples(crop_scale=crop_scale)
    return Views(frames=frames, indices=np.arange(len(frames)), batch_size=5, samples=samples, seed=seed)


def test_a_store_is_read_with_its_episodes_and_tasks(store: Path) -> None:
    frames = open_frames(store)
    assert isinstance(frames, FrameStore)
    assert len(frames) == 48
    assert frames.task_names == ["red", "green", "blue"]
    assert frames.tasks is not None
    assert np.asarray(frames.image(0)).shape == (40, 40, 3)
    assert np.asarray(frames.image(0))[..., frames.tasks[0]].max() == 220
    assert json.loads(json.dumps(frames.describe()))["suite"] == "squares"


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


def test_a_zarr_array_in_place_of_a_group_and_an_absent_folder_are_refused(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "array", data=np.zeros(3))
    with pytest.raises(DataError, match="no zarr group"):
        open_frames(tmp_path / "array")
    with pytest.raises(DataError, match="There is no folder"):
        open_frames(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        open_frames(tmp_path / "empty")


def test_images_of_one_folder_are_one_episode_where_there_are_several_folders(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.jpg", "b/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (30, 20), 90).save(tmp_path / name)
    frames = open_frames(tmp_path)
    assert isinstance(frames, ImageFolder)
    assert frames.episodes.tolist() == [0, 0, 1]
    assert frames.image(0).mode == "RGB"
    assert open_frames(tmp_path / "a").episodes.tolist() == [0, 1]
    (tmp_path / "a/1.png").write_bytes(b"not an image")
    with pytest.raises(ImageError, match=r"1\.png cannot be read"):
        frames.image(0)


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


def test_a_run_measures_on_episodes_that_it_does_not_train_on(make_config: Callable[..., RunConfig]) -> None:
    run = start(make_config())
    trained, measured = (run.frames.episodes[part.indices] for part in (run.train_views, run.held_out_views))
    assert set(trained).isdisjoint(measured)
    assert len(set(measured)) == 3


def test_a_batch_follows_from_seed_and_step_alone(store: Path) -> None:
    first, again = views(store)[7], views(store)[7]
    assert first["images"].dtype == torch.uint8
    assert first["images"].shape == (5, 3, 32, 32)
    assert torch.equal(first["images"], again["images"])
    assert torch.equal(first["noise"], again["noise"])
    assert not torch.equal(first["images"], views(store)[8]["images"])
    assert not torch.equal(first["noise"], views(store, seed=1)[7]["noise"])


def test_every_frame_is_seen_once_per_pass_and_each_pass_has_its_own_order(store: Path) -> None:
    order = np.concatenate([views(store)._order(step) for step in range(20)])  # 100 places, 48 frames
    first, second = order[:48], order[48:96]
    assert np.array_equal(np.sort(first), np.arange(48))
    assert np.array_equal(np.sort(second), np.arange(48))
    assert not np.array_equal(first, second)


def test_crops_lie_inside_the_image_and_keep_their_share_of_it() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        left, top, right, bottom = draw_box((100, 60), 0.2, random)
        assert 0 <= left < right <= 100
        assert 0 <= top < bottom <= 60
        width, height = right - left, bottom - top
        assert width * height <= 6000
        if width < 100 and height < 60:
            assert width * height >= 0.2 * 6000 - 1e-6
            assert 3 / 4 <= width / height <= 4 / 3


def test_a_crop_scale_of_one_takes_the_whole_of_a_square_frame(store: Path) -> None:
    whole = views(store, crop_scale=1.0, image_size=40)
    frame = np.asarray(whole.frames.image(3))
    images = whole.load(np.array([3]), np.random.default_rng(0))["images"]
    assert np.array_equal(images[0].permute(1, 2, 0).numpy(), frame)
    assert draw_box((100, 60), 1.0, np.random.default_rng(0)) == (20, 0, 80, 60)
