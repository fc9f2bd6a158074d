import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision.transforms import functional as reference

from pixio_pretrain.data.pairs import BYOL, ViewRecipe, make_pair, recolor, turn_hue
from pixio_pretrain.objectives.cells import cell_centers

WIDTH, HEIGHT, SIDE, GRID = 200, 120, 64, 8
PLAIN = ViewRecipe(flip=0.0, jitter=0.0, grey=0.0)


def photo(seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def map_of_places() -> Image.Image:
    """Red says the column of a pixel, green twice its row."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(WIDTH), 2 * np.arange(HEIGHT)[:, None]
    return Image.fromarray(pixels)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_the_pixels_of_every_cell_come_from_where_its_box_says(flip: float, seed: int) -> None:
    recipe = ViewRecipe(flip=flip, jitter=0.0, grey=0.0)
    pair = make_pair(map_of_places(), np.random.default_rng(seed), side=SIDE, crop_scale=0.1, recipes=(recipe, recipe))
    centers = cell_centers(torch.from_numpy(pair["boxes"]), (GRID, GRID)).numpy()  # view n (x, y)
    cells = pair["images"].reshape(2, 3, GRID, SIDE // GRID, GRID, SIDE // GRID).mean(axis=(3, 5)).reshape(2, 3, -1)
    np.testing.assert_allclose(cells[:, 0], centers[..., 0] * WIDTH - 0.5, atol=1.0)  # pixel 0 is centred at 0.5
    np.testing.assert_allclose(cells[:, 1], 2 * (centers[..., 1] * HEIGHT - 0.5), atol=2.0)


def test_a_flipped_view_is_the_mirror_image_and_its_box_runs_from_right_to_left() -> None:
    flipped = ViewRecipe(flip=1.0, jitter=0.0, grey=0.0)
    pair = make_pair(photo(), np.random.default_rng(0), side=SIDE, crop_scale=1.0, recipes=(PLAIN, flipped))
    assert np.array_equal(pair["images"][1], pair["images"][0][..., ::-1])
    left, top, right, bottom = pair["boxes"][0]
    assert left < right
    assert pair["boxes"][1].tolist() == [right, top, left, bottom]


def test_at_a_crop_scale_of_one_both_views_are_the_largest_centred_square() -> None:
    pair = make_pair(photo(), np.random.default_rng(0), side=SIDE, crop_scale=1.0, recipes=(PLAIN, PLAIN))
    assert pair["boxes"] == pytest.approx(np.array([[0.2, 0.0, 0.8, 1.0]] * 2))
    assert np.array_equal(pair["images"][0], pair["images"][1])


def test_the_same_generator_makes_the_same_pair_and_another_one_another() -> None:
    first, again, other = (
        make_pair(photo(), np.random.default_rng(seed), side=SIDE, crop_scale=0.2) for seed in (3, 3, 4)
    )
    assert all(np.array_equal(first[key], again[key]) for key in ("images", "boxes"))
    assert not np.array_equal(first["images"], other["images"])
    assert not np.array_equal(first["boxes"], other["boxes"])
    assert (first["images"].dtype, first["images"].shape) == (np.uint8, (2, 3, SIDE, SIDE))
    assert (first["boxes"].dtype, first["boxes"].shape) == (np.float32, (2, 4))
    assert ((first["boxes"] >= 0) & (first["boxes"] <= 1)).all()


@pytest.mark.parametrize("turn", [-0.3, -0.1, 0.0, 0.07, 0.5])
def test_hues_turn_as_in_torchvision(turn: float) -> None:
    assert np.array_equal(np.asarray(turn_hue(photo(), turn)), np.asarray(reference.adjust_hue(photo(), turn)))


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colours_jitter_as_in_torchvision_within_the_recipes_range(name: str) -> None:
    strengths = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0} | {name: 0.4}
    view = recolor(photo(), ViewRecipe(jitter=1.0, grey=0.0, **strengths), np.random.default_rng(0))
    change = getattr(reference, f"adjust_{name}")
    neutral = reference.adjust_hue(photo(), 0.0)  # through HSV and back, which rounds
    errors = [
        np.abs(np.asarray(change(neutral, factor), int) - np.asarray(view, int)).mean()
        for factor in np.linspace(0.6, 1.4, 161)
    ]
    assert min(errors) < 1
    assert errors[80] > 1  # it is not the neutral factor


def test_a_grey_view_has_no_colour_and_a_solarised_one_inverts_the_bright_half() -> None:
    random = np.random.default_rng(0)
    grey = np.asarray(recolor(photo(), ViewRecipe(jitter=0.0, grey=1.0), random))
    assert np.array_equal(grey[..., 0], grey[..., 1])
    assert np.array_equal(grey[..., 0], grey[..., 2])
    solarised = np.asarray(recolor(photo(), ViewRecipe(jitter=0.0, grey=0.0, solarize=1.0), random))
    original = np.asarray(photo())
    assert np.array_equal(solarised, np.where(original < 128, original, 255 - original))


def test_a_blurred_view_is_blurred_by_the_recipes_radius() -> None:
    recipe = ViewRecipe(jitter=0.0, grey=0.0, blur=1.0, blur_radius=(1.5, 1.5))
    view = recolor(photo(), recipe, np.random.default_rng(0))
    assert np.array_equal(np.asarray(view), np.asarray(photo().filter(ImageFilter.GaussianBlur(1.5))))


def test_only_the_second_view_is_ever_solarised_and_mostly_the_first_is_blurred() -> None:
    random = np.random.default_rng(0)
    white = Image.new("RGB", (16, 16), "white")
    dark = [sum(np.asarray(recolor(white, recipe, random)).mean() < 64 for _ in range(200)) for recipe in BYOL]
    assert dark[0] == 0
    assert 20 <= dark[1] <= 60  # a fifth of 200, within four deviations
    checks = Image.fromarray(np.indices((16, 16)).sum(axis=0).astype(np.uint8) % 2 * 255).convert("RGB")
    flat = [sum(np.asarray(recolor(checks, recipe, random)).std() < 25 for _ in range(200)) for recipe in BYOL]
    assert flat[0] > 0.6 * 200  # the smallest radii hardly show
    assert flat[1] < 0.4 * 200  # a tenth is blurred, a fifth is solarised to black
