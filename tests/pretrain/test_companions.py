"""Images in pairs, and the objective that rebuilds the second one from the first."""

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from PIL import Image
from torch import Tensor

from pixio_pretrain import train
from pixio_pretrain.config import RunConfig
from pixio_pretrain.data import Loader, ResidentFrames, open_source
from pixio_pretrain.data.companions import Companions, accompany
from pixio_pretrain.data.source import Frames, Subset
from pixio_pretrain.data.synthetic import Synthetic
from pixio_pretrain.objectives import create_objective
from pixio_pretrain.objectives.masked import MaskedAutoencoder
from pixio_robot import load_encoder
from pixio_robot.errors import DataError, SettingError, UnknownNameError
from pixio_robot.images import normalize

EPISODES, MOMENTS, CAMERAS, SIDE = 3, 5, 2, 40
TINY: dict[str, Any] = {"width": 16, "depth": 2, "heads": 2, "patch_size": 2, "image_size": 8, "class_tokens": 3}
TINY |= {"decoder_width": 16, "decoder_depth": 2, "decoder_heads": 2, "mask_block": 2, "mask_ratio": 0.5}
TINY |= {"companion": "later", "companion_ratio": 0.75}


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose pictures say what they are: episode in red, moment in green, camera in blue."""
    folder = tmp_path_factory.mktemp("data") / "films.zarr"
    episode, moment, camera = (part.ravel() for part in np.indices((EPISODES, MOMENTS, CAMERAS)))
    frames = np.stack([episode, moment, camera], axis=-1).astype(np.uint8)[:, None, None, :] * 20 + 5
    group = zarr.create_group(folder, attributes={"suite": "numbers"})
    group.create_array("frames", data=np.tile(frames, (1, SIDE, SIDE, 1)))
    group.create_array("episode", data=episode.astype(np.int32))
    group.create_array("camera", data=camera.astype(np.int8))
    group.attrs["complete"] = True
    return folder


def read(image: Image.Image) -> tuple[int, ...]:
    return tuple((np.asarray(image)[0, 0].astype(int) - 5) // 20)


def frames_of(folder: Path) -> Frames:
    source = open_source(folder)
    assert isinstance(source, Frames)
    return source


def tiny(**changes: Any) -> MaskedAutoencoder:
    model = create_objective("pixio", seed=0, **(TINY | changes))
    assert isinstance(model, MaskedAutoencoder)
    return model


def pictures(seed: int) -> Tensor:
    return torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_a_later_companion_is_of_the_same_camera_and_comes_second(films: Path) -> None:
    frames = frames_of(films)
    pairs, random = Companions(frames, "later", reach=2), np.random.default_rng(0)
    found: dict[tuple[int, ...], set[int]] = {}
    for index in list(range(len(frames))) * 20:
        first, second = (read(frames.image(one)) for one in pairs.pair(index, random))
        assert (first[0], first[2]) == (second[0], second[2])
        assert first[1] < second[1] <= first[1] + 2
        assert read(frames.image(index)) in (first, second)
        found.setdefault(read(frames.image(index)), set()).add(first[1] + second[1])
    assert found[0, 0, 0] == {0 + 1, 0 + 2}
    assert found[1, 2, 1] == {0 + 2, 1 + 2, 2 + 3, 2 + 4}
    assert found[2, 4, 0] == {2 + 4, 3 + 4}  # the last picture is the later one of its pairs


def test_another_camera_looks_at_the_same_moment(films: Path) -> None:
    train, held_out = frames_of(films).split(0.3)
    for frames in (train, held_out):
        pairs = Companions(frames, "camera", reach=1)
        for index in range(len(frames)):
            first, second = pairs.pair(index, np.random.default_rng(index))
            assert first == index
            one, other = read(frames.image(first)), read(frames.image(second))
            assert one[:2] == other[:2]
            assert one[2] != other[2]


@pytest.mark.parametrize(("companion", "shared"), [("later", (0, 2)), ("camera", (0, 1))])
def test_frames_on_the_device_have_companions_too(films: Path, companion: str, shared: tuple[int, ...]) -> None:
    model = tiny(companion=companion)
    source = model.prepare(open_source(films))
    there = ResidentFrames(source, model.batches(crop_scale=0.3), seed=0, device=torch.device("cpu"))
    loader = Loader(source, model.samples(crop_scale=0.3), batch_size=10, seed=0, resident=there)
    differing = next(index for index in range(3) if index not in shared)
    for loaded in islice(loader, 6):
        batch = loaded.batch
        ones, others = (((batch[key][:, :, 0, 0].int() - 5) // 20) for key in ("images", "companion"))  # b 3
        assert torch.equal(ones[:, shared], others[:, shared])
        assert not (ones[:, differing] == others[:, differing]).any()
        assert companion == "camera" or (ones[:, 1] < others[:, 1]).all()
        named = [divmod(int(key.split("/")[1]), CAMERAS) for key in loaded.keys]  # moment counted over all episodes
        pairs = zip(ones.tolist(), others.tolist(), strict=True)
        for (row, camera), pair in zip(named, pairs, strict=True):
            assert [*divmod(row, MOMENTS), camera] in pair
        assert not torch.equal(batch["noise"], batch["companion_noise"])
        assert model(**batch).loss.isfinite()


def test_a_pair_on_the_device_is_cropped_alike() -> None:
    images = torch.randint(0, 256, (5, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = tiny(mirror=True).batches(crop_scale=0.3)(images, np.random.default_rng(0), images)
    assert torch.equal(batch["images"], batch["companion"])
    assert batch["companion_noise"].shape == batch["noise"].shape


def test_a_pair_is_cropped_alike_and_hidden_differently(films: Path) -> None:
    model = tiny()
    source = model.prepare(open_source(films))
    assert isinstance(source, Companions)
    ramp = Image.fromarray(np.arange(SIDE * SIDE * 3, dtype=np.uint16).astype(np.uint8).reshape(SIDE, SIDE, 3))
    make = model.samples(crop_scale=0.3)
    alone = make(ramp, np.random.default_rng(1))
    assert np.array_equal(alone["images"], alone["companion"])  # the same crop of the same picture
    assert not np.array_equal(alone["noise"], alone["companion_noise"])
    sample = source.sample(0, make, np.random.default_rng(1))
    first, second = (read(Image.fromarray(sample[key].transpose(1, 2, 0))) for key in ("images", "companion"))
    assert first[1] < second[1]


def test_what_has_no_companion_is_refused(films: Path, store: Path) -> None:
    with pytest.raises(DataError, match=r"know their moment and camera.*render_frames"):
        accompany(open_source(store), "later", reach=2)  # that store has no cameras
    with pytest.raises(DataError, match="know their moment"):
        accompany(Synthetic(0, 10, side=8), "later", reach=2)
    with pytest.raises(SettingError, match="companion_reach must be at least 1"):
        tiny(companion="later", companion_reach=0)
    with pytest.raises(UnknownNameError, match="Did you mean 'camera'"):
        tiny(companion="cameras")
    with pytest.raises(SettingError, match="leaves none hidden or none visible"):
        tiny(companion_ratio=0.99)
    with pytest.raises(SettingError, match="no companions"):
        tiny(companion="none")(pictures(0), companion=pictures(1))
    frames = frames_of(films)
    lonely = np.flatnonzero((frames.episodes != 1) | (np.arange(len(frames)) == MOMENTS * CAMERAS))
    with pytest.raises(DataError, match=f"1/{MOMENTS * CAMERAS} is the only one"):
        Companions(Subset(frames, lonely), "later", reach=2)


def test_the_companion_is_rebuilt_from_the_image_and_its_hidden_pixels_reach_nothing() -> None:
    model, noise = tiny(), torch.tensor([[0.1, 0.2, 0.8, 0.9]]).expand(2, -1)
    first, second = pictures(0), pictures(1)

    def predict(image: Tensor, companion: Tensor) -> Tensor:
        return model(image, noise=noise, companion=companion, companion_noise=noise).prediction

    before = predict(first, second)
    assert before.shape == (2, 2 * 16, 12)
    seen, hidden = first.clone(), second.clone()
    seen[:, :, :4] = 255 - seen[:, :, :4]  # the upper half is seen
    hidden[:, :, 4:] = 255 - hidden[:, :, 4:]
    assert not torch.equal(predict(seen, second)[:, 16:], before[:, 16:])
    assert torch.equal(predict(first, hidden), before)
    mask = model(first, noise=noise, companion=second, companion_noise=noise).mask
    assert mask[:, :16].sum() == 2 * 8
    assert mask[:, 16:].sum() == 2 * 12


def test_an_image_alone_is_what_it_was_without_companions() -> None:
    plain = tiny(companion="none")
    model = tiny()
    model.load_state_dict(plain.state_dict(), strict=False)
    noise = torch.rand(2, 4)
    assert torch.equal(model(pictures(0), noise=noise).prediction, plain(pictures(0), noise=noise).prediction)


def test_visible_patches_count_as_much_as_they_are_told_to() -> None:
    model, noise = tiny(visible_loss=0.25), torch.tensor([[0.1, 0.2, 0.8, 0.9]]).expand(2, -1)
    output = model(pictures(0), noise=noise)
    (gradient,) = torch.autograd.grad(output.loss, output.prediction)
    wrong = output.prediction - model.targets(normalize(pictures(0), torch.float32))
    share = gradient.abs().sum(dim=-1) / wrong.abs().sum(dim=-1)
    torch.testing.assert_close(share / share.max(), output.mask * 0.75 + 0.25, rtol=1e-3, atol=0)
    with pytest.raises(SettingError, match="visible_loss must be at least 0"):
        tiny(visible_loss=-1.0)


def test_a_picture_shows_the_companion_below_its_image() -> None:
    shown = tiny().reconstruct(pictures(0), companion=pictures(1), companion_noise=torch.rand(2, 4))
    assert torch.equal(shown.original, torch.cat([pictures(0), pictures(1)], dim=2))
    assert shown.rebuilt.shape == shown.masked.shape == (2, 3, 16, 8)


def test_a_run_with_companions_and_convolutions_ends_in_an_encoder(
    make_config: Callable[..., RunConfig], films: Path, tmp_path: Path
) -> None:
    config = make_config(data=str(films))
    config.objective = replace(config.objective, companion="later", companion_ratio=0.75, stem="conv")
    folder = train(config)
    encoder = load_encoder(folder)
    assert encoder.spec.stem == "conv"
    assert (tmp_path / "run" / "result.json").exists()
    assert "mean training patch" in (folder / "README.md").read_text()
