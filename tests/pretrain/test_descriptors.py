"""Frames in several looks, warped pairs of them, and the objective that knows their points again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pixio_pretrain import train
from pixio_pretrain.config import LogConfig, OptimizerConfig, RunConfig, ViewsConfig
from pixio_pretrain.data import open_source
from pixio_pretrain.data.companions import Companions
from pixio_pretrain.data.looks import Looks, look_twice
from pixio_pretrain.data.source import Frames
from pixio_pretrain.data.synthetic import Synthetic
from pixio_pretrain.data.warps import make_warped_pair
from pixio_pretrain.objectives.descriptors import Descriptors, DescriptorsConfig, contrast
from pixio_robot import load_encoder
from pixio_robot.descriptors import DescriptorNet
from pixio_robot.errors import DataError, ImageError, SettingError

EPISODES, MOMENTS, CAMERAS, LOOKS, SIDE = 6, 3, 2, 3, 32
WARP: dict[str, Any] = {"side": SIDE, "crop_scale": 0.6, "turn": 30.0, "points": 48, "share": 0.75, "paste": 0.0}


def store(folder: Path, **arrays: NDArray[Any]) -> Path:
    group = zarr.create_group(folder, attributes={"tasks": ["one"], "suite": "squares"})
    for name, values in arrays.items():
        group.create_array(name, data=values)
    group.attrs["complete"] = True
    return folder


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A square that wanders over a ground; looks but the first shift all colours, each by what it is."""
    random = np.random.default_rng(0)
    episode, moment, look, camera = (part.ravel() for part in np.indices((EPISODES, MOMENTS, LOOKS, CAMERAS)))
    grounds = random.integers(60, 120, (CAMERAS, SIDE // 4, SIDE // 4, 3)).repeat(4, 1).repeat(4, 2)
    corners = random.integers(0, SIDE - 6, (EPISODES, MOMENTS, CAMERAS, 2))
    frames = grounds[camera].astype(np.int64)
    for frame, (top, left) in zip(frames, corners[episode, moment, camera], strict=True):
        frame[top : top + 6, left : left + 6] = (210, 30, 30)
    frames += np.array([[0, 0, 0], [25, 0, 0], [0, 0, 40]])[look][:, None, None]
    return store(
        tmp_path_factory.mktemp("data") / "squares.zarr",
        frames=frames.astype(np.uint8),
        episode=episode.astype(np.int32),
        task=np.zeros(len(frames), np.int16),
        camera=camera.astype(np.int8),
        look=look.astype(np.int8),
    )


def frames_of(folder: Path) -> Frames:
    source = open_source(folder)
    assert isinstance(source, Frames)
    return source


def keep(*arguments: Any) -> dict[str, Any]:
    return dict(zip(("first", "random", "second", "moving", "stranger"), arguments, strict=True))


def square(image: Image.Image) -> NDArray[np.bool_]:
    red, green = np.asarray(image).astype(int)[..., :2].transpose(2, 0, 1)
    return (red - green > 120) & (red > 200)


def test_a_pair_is_one_moment_in_two_looks_and_what_moves_is_the_square(squares: Path) -> None:
    frames = Looks(frames_of(squares))
    random, seen = np.random.default_rng(0), set()
    for index in range(0, len(frames), 5):
        sample = frames.sample(index, keep, random)
        first, second = (np.asarray(sample[name]).astype(int) for name in ("first", "second"))
        change = (second - first).reshape(-1, 3)
        assert (change == change[0]).all()  # nothing moved, all colours changed alike
        assert change[0].any()
        seen.add(tuple(change[0].tolist()))
        np.testing.assert_array_equal(sample["moving"], square(frames.image(index)))
        assert sample["stranger"].size == (SIDE, SIDE)
    assert len(seen) == 6  # each of three looks with each other


def test_frames_in_one_look_or_without_their_own_are_refused(squares: Path, store_of: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match=r"render_frames\.py FOLDER --looks 3 --shift looks"):
        Looks(frames_of(store_of("plain", lambda array, _: array, without=("look",))))
    for name, chosen in (("alone", lambda look: look == 0), ("changed", lambda look: look > 0)):
        folder = store_of(name, lambda array, look, chosen=chosen: array[chosen(look)])
        with pytest.raises(DataError, match="in its own looks"):
            Looks(frames_of(folder))
    with pytest.raises(DataError, match="several looks"):
        look_twice(Synthetic(0, 4, side=SIDE))
    assert isinstance(look_twice(frames_of(squares)), Looks)


@pytest.fixture
def store_of(squares: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the squares with arrays that are changed, given the look of each row."""

    def make(name: str, change: Callable[..., NDArray[Any]], *, without: tuple[str, ...] = ()) -> Path:
        group: Any = zarr.open_group(squares, mode="r")
        look = np.asarray(group["look"][:])
        arrays = {key: change(np.asarray(array[:]), look) for key, array in group.arrays() if key not in without}
        return store(tmp_path / name, **arrays)

    return make


def test_companions_of_frames_in_several_looks_have_one_look(squares: Path) -> None:
    frames = frames_of(squares)
    places = frames.places
    assert places is not None
    assert places.look is not None
    assert places.moment.max() == MOMENTS - 1
    random = np.random.default_rng(0)
    for companion, same, other in (("later", places.camera, places.moment), ("camera", places.moment, places.camera)):
        pairs = Companions(frames, companion, reach=4).pairs(range(len(frames)), random)
        for values in (frames.episodes, places.look, same):
            np.testing.assert_array_equal(*values[pairs.T])
        assert (other[pairs[:, 0]] != other[pairs[:, 1]]).all()


def test_points_show_in_both_views_what_they_show_in_the_picture() -> None:
    ramp = np.linspace(0, 255, SIDE)
    picture = np.stack(np.broadcast_arrays(ramp[None], ramp[:, None], 128), axis=-1).round().astype(np.uint8)
    moving = np.zeros((SIDE, SIDE), bool)
    moving[10:20, 12:22] = True
    turned = 0.0
    for seed in range(5):
        sample = make_warped_pair(Image.fromarray(picture), np.random.default_rng(seed), None, moving, **WARP)
        expected = ((sample["places"] + 1) / 2 * SIDE - 0.5) / (SIDE - 1) * 255  # red to the right, green down
        for view, points in zip(sample["images"], sample["points"], strict=True):
            inside = (np.abs(points) < 0.9).all(axis=1) & (np.abs(sample["places"]) < 0.9).all(axis=1)
            assert inside.any()
            pixels, where = torch.from_numpy(view[None].astype(np.float32)), torch.from_numpy(points)[None, None]
            shown = F.grid_sample(pixels, where, align_corners=False)[0, :2, 0].T.numpy()
            assert np.abs(shown - expected)[inside].max() < 4  # half a pixel is as much
            turned = max(turned, float(np.abs(points - sample["places"]).max()))
    assert turned > 0.2


def test_a_small_thing_has_as_many_points_as_a_large_one_and_specks_have_none() -> None:
    moving = np.zeros((SIDE, SIDE), bool)
    moving[2:4, 2:4] = moving[10:26, 10:26] = True
    moving[30, 30] = True
    counts = np.zeros(3, int)
    for seed in range(20):
        picture = Image.new("RGB", (SIDE, SIDE))
        sample = make_warped_pair(picture, np.random.default_rng(seed), None, moving, **WARP | {"crop_scale": 1.0})
        assert sample["things"].sum() == 36
        right, down = ((sample["places"] + 1) / 2 * SIDE - 0.5).round().astype(int).T
        on = sample["things"]
        assert moving[down[on], right[on]].all()
        assert not (moving[down[~on], right[~on]] & ~((down[~on] == 30) & (right[~on] == 30))).any()
        counts += [(on & (right < 8)).sum(), (on & (right >= 8) & (right < 28)).sum(), (on & (right == 30)).sum()]
    assert counts[2] == 0
    assert 0.8 < counts[0] / counts[1] < 1.25


def test_another_background_leaves_the_thing_and_replaces_the_rest() -> None:
    moving = np.zeros((SIDE, SIDE), bool)
    moving[10:20, 12:22] = True
    picture, stranger = Image.new("RGB", (SIDE, SIDE), (200, 0, 0)), Image.new("RGB", (SIDE, SIDE), (0, 0, 200))
    settings = WARP | {"crop_scale": 1.0, "paste": 1.0}
    sample = make_warped_pair(picture, np.random.default_rng(0), picture, moving, stranger, **settings)
    grown = np.zeros_like(moving)
    grown[8:22, 10:24] = True
    for view in sample["images"]:
        assert (view[0][moving] == 200).all()
        assert (view[2][~grown] == 200).all()
        assert ((view[0] == 200) ^ (view[2] == 200)).all()


def test_the_loss_is_that_of_points_worked_by_hand() -> None:
    logits = torch.tensor([[[3.0, 1.0, 2.0], [1.0, 1.0, 1.0], [5.0, 1.0, 1.0]]]).log()
    compared = torch.tensor([[[1, 1, 0], [1, 1, 1], [0, 1, 1]]]).bool()
    counted = torch.tensor([[1, 1, 0]]).bool()
    loss, found = contrast(logits, compared, counted)
    rows = [3 / 4, 1 / 3]
    columns = [3 / 4, 1 / 3]
    expected = -np.mean([np.log(rows[i]) / 2 + np.log(columns[i]) / 2 for i in range(2)])
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    assert found.item() == pytest.approx(0.5)  # all are alike to the second point
    nothing, _ = contrast(logits, compared, torch.zeros(1, 3, dtype=torch.bool))
    assert nothing.item() == 0


def batch(model: Descriptors, squares: Path, count: int = 4, crop_scale: float = 0.6) -> dict[str, Tensor]:
    frames, random = Looks(frames_of(squares)), np.random.default_rng(1)
    make = model.samples(crop_scale=crop_scale)
    samples = [frames.sample(int(random.integers(len(frames))), make, random) for _ in range(count)]
    return {key: torch.from_numpy(np.stack([sample[key] for sample in samples])) for key in samples[0]}


def tiny(**changes: Any) -> Descriptors:
    model = DescriptorsConfig(**({"image_size": SIDE, "points": 32} | changes)).build()
    model.initialize(torch.Generator().manual_seed(0))
    return model


def test_near_and_unseen_points_are_not_told_apart(squares: Path) -> None:
    model = tiny(near=6.0)
    given = batch(model, squares)
    compared, counted = model._compared(given["points"], given["places"], given["things"])
    distance = torch.cdist(given["places"], given["places"]) * SIDE / 2
    seen = (given["points"].abs() < 1).all(dim=-1).all(dim=1)
    assert not compared[distance.lt(6) & ~torch.eye(32, dtype=torch.bool)].any()
    assert compared[distance.gt(6.1) & seen[:, None] & seen[:, :, None]].all()
    assert torch.equal(compared.diagonal(dim1=1, dim2=2), seen)
    assert torch.equal(counted, seen & given["things"])
    assert not seen.all()


def test_training_lowers_the_loss_below_that_of_equal_points(squares: Path) -> None:
    model = tiny()
    given = batch(model, squares, count=8)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    first = model(**given)
    for _ in range(30):
        output = model(**given)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert output.loss.item() < min(first.loss.item(), model.baselines([], [given])["all points alike"]) - 0.3
    assert output.found > first.found
    assert output.maps.shape == (8, 2, 24, SIDE // 2, SIDE // 2)
    assert model.picture(given).size == (8 * SIDE, 4 * SIDE)


def test_a_run_writes_descriptors_with_a_card_and_a_picture(squares: Path, tmp_path: Path) -> None:
    config = RunConfig(
        data=str(squares),
        folder=str(tmp_path / "run"),
        licence="apache-2.0",
        steps=4,
        batch_size=4,
        evaluate_every=2,
        checkpoint_every=2,
        precision="fp32",
        objective=DescriptorsConfig(image_size=SIDE, points=32),
        optimizer=OptimizerConfig(base_lr=0.1, warmup=1),
        views=ViewsConfig(held_out=0.3, held_out_views=8),
        log=LogConfig(every=1, trackers=[]),
    )
    train(config, command="test")
    encoder = load_encoder(tmp_path / "run")
    assert encoder.spec.family == "descriptors"
    assert encoder.spec.image_size == SIDE
    assert isinstance(encoder.backbone, DescriptorNet)
    card = (tmp_path / "run" / "encoder" / "README.md").read_text()
    assert "all points alike" in card
    assert "library_name: pixio-robot" in card
    assert "transformers does not read this folder" in card
    assert (tmp_path / "run" / "encoder" / "picture.png").is_file()


def test_what_cannot_be_is_refused(squares: Path) -> None:
    for wrong, said in (
        ({"image_size": 33}, "image_size=33"),
        ({"points": 1}, "points must be at least 2"),
        ({"share": 0.0}, "share=0.0"),
        ({"paste": 1.5}, "paste=1.5"),
        ({"turn": 190.0}, r"turn in \[0, 180\]"),
    ):
        with pytest.raises(SettingError, match=said):
            DescriptorsConfig(**wrong).build()
    model = tiny()
    given = batch(model, squares)
    with pytest.raises(ImageError, match="Pairs of views"):
        model(**given | {"images": given["images"][:, 0]})
    with pytest.raises(SettingError, match="Points must be"):
        model(**given | {"points": given["points"][:, :1]})
