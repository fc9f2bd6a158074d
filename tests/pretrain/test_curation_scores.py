from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import nn

from pixio_pretrain.checkpoint import save_checkpoint
from pixio_pretrain.curation.scores import ReconstructionLoss, histogram_score
from pixio_pretrain.distributed import World
from pixio_pretrain.objectives import create_objective
from pixio_pretrain.objectives.masked import MaskedAutoencoder
from pixio_pretrain.trained import load_trained
from pixio_robot.errors import CheckpointError, SettingError

THRESHOLD = 4.5
TINY: dict[str, Any] = {"width": 32, "depth": 1, "heads": 2, "patch_size": 8, "image_size": 32, "class_tokens": 2}
TINY |= {"decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2, "mask_block": 2}


def picture(pixels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels))


def images(count: int) -> list[Image.Image]:
    random = np.random.default_rng(0)
    shapes = [(40 + 7 * number, 50) for number in range(count)]
    return [picture(random.integers(0, 256, (*shape, 3), dtype=np.uint8)) for shape in shapes]


@pytest.fixture(scope="module")
def model() -> MaskedAutoencoder:
    model = create_objective("pixio", seed=0, **TINY)
    assert isinstance(model, MaskedAutoencoder)
    return model


@pytest.mark.parametrize(
    ("pixels", "bits"),
    [
        (np.full((20, 30, 3), (200, 30, 90)), 0),  # one colour
        (np.repeat([[[0, 0, 0]], [[255, 255, 255]]], 8, axis=1), 1),  # two, equally often: a bit in each channel
        (np.repeat([[[0, 9, 9]], [[255, 9, 9]]], 8, axis=1), 1 / 3),  # that differ in red only
        (np.tile(np.arange(256)[:, None, None], (1, 4, 3)), 8),  # all levels, equally often
    ],
)
def test_the_entropy_of_simple_images_is_what_one_works_out_by_hand(pixels: NDArray[np.int64], bits: float) -> None:
    assert histogram_score(picture(pixels.astype(np.uint8))) == pytest.approx(bits, abs=1e-6)


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))))
def test_the_entropy_is_the_mean_of_the_channels_whatever_the_image(pixels: NDArray[np.uint8]) -> None:
    shares = [np.unique(pixels[..., channel], return_counts=True)[1] / pixels[..., 0].size for channel in range(3)]
    assert histogram_score(picture(pixels)) == pytest.approx(-np.mean([(p * np.log2(p)).sum() for p in shares]))


def test_pixios_threshold_lies_between_flat_graphics_and_scenes_with_shading() -> None:
    slide = Image.new("RGB", (320, 240), "white")
    draw = ImageDraw.Draw(slide)
    draw.rectangle((0, 0, 320, 40), fill="navy")
    for line in range(60, 230, 16):
        draw.text((10, line), "one line of a page of text, set in black on white", fill="black")
    ramp = np.linspace(60, 200, 240)[:, None, None] + np.linspace(-30, 30, 320)[None, :, None]
    scene = ramp * (1.0, 0.8, 0.6) + np.random.default_rng(0).normal(0, 4, (240, 320, 1))
    assert histogram_score(slide) < THRESHOLD - 1
    assert histogram_score(picture(scene.clip(0, 255).astype(np.uint8))) > THRESHOLD + 1


def test_losses_are_those_of_the_objective(model: MaskedAutoencoder) -> None:
    measure = ReconstructionLoss(model, masks=3, seed=5)
    whole = model.samples(crop_scale=1.0)
    samples = [whole(image, np.random.default_rng([5, mask])) for mask in range(3) for image in images(3)]
    batches = [{name: torch.tensor(value[None]) for name, value in sample.items()} for sample in samples]
    expected = [model(**batch).loss.item() for batch in batches]
    assert measure(images(3)) == pytest.approx(np.reshape(expected, (3, 3)).mean(axis=0), abs=1e-5)


def test_the_loss_of_an_image_depends_on_the_image_alone(model: MaskedAutoencoder) -> None:
    measure = ReconstructionLoss(model)
    together = measure(images(4))
    torch.rand(1)
    assert measure(images(4)) == together
    assert measure(images(4)[2:3]) == pytest.approx(together[2:3], abs=1e-5)
    assert len(set(together)) == 4


def test_what_was_learnt_has_a_lower_loss_than_what_was_not(model: MaskedAutoencoder) -> None:
    seen, unseen = images(2)
    learner = create_objective("pixio", seed=0, **TINY)
    pixels = torch.tensor(learner.samples(crop_scale=1.0)(seen, np.random.default_rng(0))["images"][None])
    optimizer = torch.optim.Adam([p for p in learner.parameters() if p.requires_grad], lr=1e-2)
    torch.manual_seed(0)
    for _ in range(25):
        optimizer.zero_grad()
        learner(pixels).loss.backward()
        optimizer.step()
    known, unknown = ReconstructionLoss(learner)([seen, unseen])
    assert known < unknown - 0.1


def test_an_objective_that_rebuilds_nothing_is_refused() -> None:
    blind: Any = SimpleNamespace(config=SimpleNamespace(name="pixpro"))
    with pytest.raises(SettingError, match="'pixpro' rebuilds no images"):
        ReconstructionLoss(blind)


def test_losses_that_are_not_finite_are_refused() -> None:
    broken = create_objective("pixio", seed=0, **TINY)
    nn.init.constant_(next(broken.parameters()), float("nan"))
    with pytest.raises(CheckpointError, match="not finite"):
        ReconstructionLoss(broken)(images(1))


@pytest.mark.parametrize(("settings", "answer"), [({"masks": 0}, "masks must"), ({"precision": "fp8"}, "bf16 or fp32")])
def test_settings_out_of_range_are_refused(model: MaskedAutoencoder, settings: dict[str, Any], answer: str) -> None:
    with pytest.raises(SettingError, match=answer):
        ReconstructionLoss(model, **settings)


@pytest.fixture
def save_run(tmp_path: Path) -> Callable[..., Path]:
    """Save a model as a run would; gives the run's folder."""

    def save(model: MaskedAutoencoder, **settings: Any) -> Path:
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
        identity = {f"objective.{key}": value for key, value in settings.items()} | {"seed": 0}
        world = World(device=torch.device("cpu"))
        save_checkpoint(
            tmp_path / "run/checkpoints", model, optimizer, step=1, facts={"identity": identity}, own={}, world=world
        )
        return tmp_path / "run"

    return save


def test_a_run_folder_gives_its_objective_back(model: MaskedAutoencoder, save_run: Callable[..., Path]) -> None:
    found = load_trained(save_run(model, name="pixio", **TINY)).objective
    assert not found.training
    assert found.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in found.state_dict().items())


def test_a_folder_without_a_checkpoint_or_with_another_models_is_refused(
    model: MaskedAutoencoder, save_run: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="There is no checkpoint in"):
        load_trained(tmp_path)
    with pytest.raises(CheckpointError, match="is damaged or foreign"):
        load_trained(save_run(model, name="pixio", **(TINY | {"width": 64})))
