"""The adapter: shapes, pooled and unpooled tokens, and what it tells apart."""

import itertools
from typing import get_args

import pytest
import torch

from pixio_robot import Tokens, VisualFeatureAdapter
from pixio_robot.adapter import MEMORY, ClassRead, MergePool, PatchRead, Standardize
from pixio_robot.errors import SettingError, UnknownNameError


def fake_tokens(*lead: int, grid=(4, 6), classes=3, width=16, seed=0) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    return Tokens(
        torch.randn(*lead, classes, width, generator=generator),
        torch.randn(*lead, grid[0] * grid[1], width, generator=generator),
        grid,
    )


@pytest.mark.parametrize(("output", "standardize"), [("tokens", False), ("vector", False), ("tokens", True)])
@pytest.mark.parametrize(
    ("classes", "patches"),
    [pair for pair in itertools.product(get_args(ClassRead), get_args(PatchRead)) if pair != ("none", "none")],
)
def test_every_choice_has_the_promised_shape_and_trains_every_parameter(classes, patches, output, standardize):
    settings = {"classes": classes, "patches": patches, "output": output, "standardize": standardize}
    sizes = {"cameras": 2, "steps": 3, "class_tokens": 3, "grid": 2, "patch_count": 24}
    adapter = VisualFeatureAdapter(16, dim=24, **sizes, **settings)
    out = adapter([fake_tokens(5, 3, seed=0), fake_tokens(5, 3, seed=1)])
    slots = {"each": 3, "mean": 1, "concat": 1, "none": 0}[classes] + (0 if patches == "none" else 4)
    assert adapter.length == 2 * 3 * slots
    assert out.shape == ((5, adapter.length, 24) if output == "tokens" else (5, 24))
    out.square().sum().backward()
    untouched = [name for name, value in adapter.named_parameters() if value.grad is None or not value.grad.any()]
    # Shifting every score of a softmax alike changes nothing: these two biases cannot learn.
    assert set(untouched) <= {"patch_pool.key.bias", "patch_pool.score.bias"}


@pytest.mark.parametrize(("patches", "side"), [("average", 2), ("merge", 4)])
def test_tokens_that_a_cache_pooled_give_the_same_output(patches, side):
    adapter = VisualFeatureAdapter(16, dim=24, class_tokens=3, patches=patches, grid=2)
    tokens = fake_tokens(5)
    torch.testing.assert_close(adapter([tokens.pool(side)]), adapter([tokens]))


def test_merged_patches_keep_their_place_in_the_cell():
    pool = MergePool(torch.nn.Identity(), 16, 24, 2)
    tokens = fake_tokens(1, grid=(4, 4))
    with torch.no_grad():
        pool.project.weight.zero_()
        pool.project.bias.zero_()
        pool.project.weight[:16, 2 * 16 : 3 * 16] = torch.eye(16)  # the third of each four: lower left
    lower_left = tokens.patches.view(1, 4, 4, 16)[:, 1::2, 0::2].reshape(1, 4, 16)
    torch.testing.assert_close(pool(tokens)[..., :16], lower_left)


def test_cached_half_precision_is_read_under_autocast():
    adapter = VisualFeatureAdapter(16, dim=24, cameras=2, class_tokens=3, grid=2)
    half = [fake_tokens(5, seed=seed).map(lambda x: x.half()) for seed in (0, 1)]
    with torch.autocast("cpu", torch.bfloat16):
        out = adapter(half)
    torch.testing.assert_close(out.float(), adapter(half), atol=0.05, rtol=0.05)


def test_average_pooling_is_the_mean_of_each_cell():
    tokens = fake_tokens(1, grid=(4, 4))
    cell = tokens.patches.view(1, 4, 4, 16)[:, 2:, :2].mean(dim=(1, 2))
    torch.testing.assert_close(tokens.pool(2).patches[:, 2], cell)
    assert tokens.pool(4) is tokens


def test_a_keypoint_points_at_the_patch_that_its_filter_likes():
    settings = {"classes": "none", "patches": "spatial_softmax", "grid": 1, "standardize": False}
    adapter = VisualFeatureAdapter(16, dim=2, class_tokens=3, **settings)
    pool = adapter.patch_pool
    with torch.no_grad():
        pool.score.weight.zero_()
        pool.score.weight[0, 0] = 100.0
        pool.project.weight.zero_()
        pool.project.bias.zero_()
        pool.project.weight[:, -2:] = torch.eye(2)
        for embedding in (adapter.slot_embedding, adapter.camera_embedding, adapter.step_embedding):
            embedding.zero_()
        patches = torch.zeros(1, 24, 16)
        patches[0, 3 * 6 + 0, 0] = 1.0  # last row, first column of a 4 x 6 grid
        out = adapter([Tokens(torch.zeros(1, 3, 16), patches, (4, 6))])
    torch.testing.assert_close(out, torch.tensor([[[1.0, -1.0]]]), atol=1e-4, rtol=0)


def test_tokens_are_standardised_by_what_training_saw_slot_by_slot_and_camera_by_camera():
    standardize = Standardize(2, 4, 3)
    generator = torch.Generator().manual_seed(0)
    places = torch.randn(2, 4, 3, generator=generator)
    spread = torch.tensor([0.1, 1.0, 10.0])
    frames = 5 * places + spread * torch.randn(6, 50, 1, 2, 4, 3, generator=generator)  # calls, b t v s d
    for batch in frames:
        standardize(batch)
    seen = frames.flatten(0, 2)
    torch.testing.assert_close(standardize.mean, seen.mean(dim=0))
    deviation = (seen - seen.mean(dim=0)).square().mean(dim=(0, 2)).sqrt()
    standardize.eval()
    out = standardize(frames[0])
    torch.testing.assert_close(out, (frames[0] - seen.mean(dim=0)) / deviation[:, None], atol=1e-3, rtol=1e-3)
    assert torch.equal(out[:1], standardize(frames[0, :1]))  # in evaluation nothing is noted
    assert standardize(frames[0].half()).dtype == torch.float16


def test_what_fades_is_what_was_seen_long_ago():
    standardize = Standardize(1, 1, 1)
    for value, times in ((0.0, 2), (1.0, 30)):
        for _ in range(times):
            standardize(torch.full((MEMORY // 10, 1, 1, 1, 1), value))
    assert standardize.count == MEMORY
    assert standardize.mean.item() == pytest.approx(1.0, abs=0.05)
    assert standardize.variance.item() < 0.05


def test_a_slot_that_never_changes_stays_finite():
    standardize = Standardize(1, 4, 8)
    still = torch.ones(3, 1, 1, 4, 8)
    assert standardize(still).abs().max() < 1e-3


def test_standardised_tokens_tell_little_things_apart_that_all_frames_share_the_rest_of():
    """A token that is nine tenths its place: a linear read-out hears the tenth only if the place is taken away."""
    generator = torch.Generator().manual_seed(0)
    places = 10 * torch.randn(1, 16, 16, generator=generator)
    patches = places + torch.randn(64, 16, 16, generator=generator)
    tokens = [Tokens(torch.zeros(64, 3, 16), patches, (4, 4))]
    spreads = {}
    for standardize in (True, False):
        torch.manual_seed(0)
        adapter = VisualFeatureAdapter(16, dim=24, class_tokens=3, grid=4, classes="none", standardize=standardize)
        adapter(tokens)
        spreads[standardize] = adapter.eval()(tokens).std(dim=0).mean().item()
    assert spreads[True] > 5 * spreads[False]


def test_equal_features_in_another_slot_camera_or_step_stay_distinguishable():
    adapter = VisualFeatureAdapter(16, dim=24, cameras=2, steps=2, class_tokens=3, grid=2)
    flat = Tokens(torch.ones(1, 2, 3, 16), torch.ones(1, 2, 24, 16), (4, 6))
    out = adapter([flat, flat])[0]
    distances = torch.cdist(out, out) + 10 * torch.eye(len(out))
    assert distances.min() > 1e-3


def test_an_encoder_without_class_tokens_is_adapted_by_its_patches():
    adapter = VisualFeatureAdapter(16, dim=24, class_tokens=0, classes="mean", grid=2)
    assert adapter([fake_tokens(2, classes=0)]).shape == (2, 4, 24)


def test_what_does_not_fit_is_refused():
    adapter = VisualFeatureAdapter(16, dim=24, cameras=2, class_tokens=3, grid=2)
    with pytest.raises(SettingError, match="2 cameras, not 1"):
        adapter([fake_tokens(1)])
    with pytest.raises(SettingError, match="one Tokens per camera"):
        adapter(fake_tokens(1))
    with pytest.raises(SettingError, match="3 class tokens"):
        adapter([fake_tokens(1, classes=8)] * 2)
    with pytest.raises(SettingError, match="grids differ"):
        adapter([fake_tokens(1), fake_tokens(1, grid=(4, 4))])
    with pytest.raises(SettingError, match="from 1 to 4"):
        fake_tokens(1).pool(5)
    with pytest.raises(SettingError, match=r"say how many a view has \(patch_count=64"):
        VisualFeatureAdapter(16, patches="attention", standardize=True)
    attentive = VisualFeatureAdapter(16, patches="attention", class_tokens=3, patch_count=24, standardize=True)
    with pytest.raises(SettingError, match=r"24 patches per view.* given 16"):
        attentive([fake_tokens(1, grid=(4, 4))])
    with pytest.raises(SettingError, match="blind"):
        VisualFeatureAdapter(16, classes="none", patches="none")
    with pytest.raises(UnknownNameError, match="Did you mean 'average'"):
        VisualFeatureAdapter(16, patches="averge")
