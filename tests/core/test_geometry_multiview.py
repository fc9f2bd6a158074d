from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from pixio_robot import Encoder, create_encoder, load_encoder
from pixio_robot.errors import CheckpointError, DataError, SettingError
from pixio_robot.geometry.cameras import project, transform, unproject
from pixio_robot.geometry.depth import DepthModel, DepthSettings, load_depth
from pixio_robot.geometry.matching import AROUND, SingleView, Told
from pixio_robot.geometry.multiview import MultiViewModel, load_multiview
from pixio_robot.geometry.storage import kind_of
from pixio_robot.geometry.sweep import GAP, plane_sweep, sweep_depths
from pixio_robot.geometry.trunk import MultiViewSettings

SIZE = (48, 64)
K = torch.tensor([[70.0, 0, 31], [0, 71, 25], [0, 0, 1]]).expand(2, 3, 3, 3)


def poses(seed: int = 0) -> torch.Tensor:
    """Three cameras that look down on a table from about 0.8 m, two scenes of them [2 3 4 4]."""
    random = torch.Generator().manual_seed(seed)
    turn, _ = torch.linalg.qr(torch.eye(3) + 0.05 * torch.randn(2, 3, 3, 3, generator=random))
    turn = turn * torch.linalg.det(turn)[..., None, None] @ torch.diag(torch.tensor([1.0, -1, -1]))
    made = torch.eye(4).repeat(2, 3, 1, 1)
    made[..., :3, :3] = turn
    made[..., :3, 3] = torch.tensor([0, 0, 0.8]) + 0.1 * torch.randn(2, 3, 3, generator=random)
    return made


@pytest.fixture
def views() -> torch.Tensor:
    return torch.rand(2, 3, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def make(encoder: Encoder, alone: str | None = None, **settings: Any) -> MultiViewModel:
    head = head_for_one(encoder, alone) if alone else None
    torch.manual_seed(0)
    return MultiViewModel(encoder, MultiViewSettings(width=24, heads=2, bins=6, **settings), depth_head=head).eval()


GIVEN = {
    "nothing": {},
    "intrinsics": {"intrinsics": K},
    "poses": {"cam2world": poses()},
    "scale": {"scale": torch.tensor([0.7, 1.3])},
    "intrinsics and poses": {"intrinsics": K, "cam2world": poses()},
    "intrinsics and scale": {"intrinsics": K, "scale": torch.tensor([0.7, 1.3])},
}


ALONE: dict[str, Any] = {
    "canonical": {"coding": "canonical"},
    "support": {"coding": "support", "support_heights": (0.0, -0.9), "max_depth": 4.0},
    "rays and detail": {"coding": "support", "rays": True, "detail": True},
    "linear": {"head": "linear"},
}


def head_for_one(encoder: Encoder, name: str) -> DepthModel:
    torch.manual_seed(3)
    model = DepthModel(encoder, DepthSettings(**ALONE[name]))
    model.start_at(0.8, focal=70)
    return model.eval()


@pytest.mark.parametrize("made", [{}, {"detail": True}, {"alone": "support"}, {"alone": "canonical", "detail": True}])
@pytest.mark.parametrize("name", GIVEN)
def test_what_is_given_comes_back_bit_for_bit_and_the_rest_is_predicted(
    encoder: Encoder, views: torch.Tensor, name: str, made: dict[str, Any]
) -> None:
    given = GIVEN[name]
    found = make(encoder, **made)(views, **given)
    for part in ("intrinsics", "cam2world", "scale"):
        follows = part == "scale" and "cam2world" in given
        assert found.source[part] == ("given" if part in given or follows else "predicted")
        if part in given:
            assert torch.equal(getattr(found, part), given[part])
    assert found.depth_z.shape == found.mask.shape == found.confidence.shape == (2, 3, *SIZE)
    assert found.depth_z.isfinite().all()
    assert (found.depth_z > 0).all()
    torch.testing.assert_close(found.points_cam[..., 2], found.depth_z)
    torch.testing.assert_close(found.points_cam, unproject(found.depth_z, found.intrinsics))
    torch.testing.assert_close(found.points_world, transform(found.cam2world, found.points_cam))
    torch.testing.assert_close(found.rays, F.normalize(found.points_cam, dim=-1))
    mean = (found.depth_z * found.mask)[:, 0].sum(dim=(1, 2)) / found.mask[:, 0].sum(dim=(1, 2))
    torch.testing.assert_close(found.scale, mean)


def test_predicted_poses_are_rigid_and_start_at_view_0(encoder: Encoder, views: torch.Tensor) -> None:
    found = make(encoder)(views).cam2world
    torch.testing.assert_close(found[:, 0], torch.eye(4).expand(2, 4, 4))
    rotation = found[..., :3, :3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand_as(rotation), atol=1e-5, rtol=0)
    assert (torch.linalg.det(rotation) > 0).all()


def test_views_talk_to_each_other_and_poses_change_what_they_say(encoder: Encoder, views: torch.Tensor) -> None:
    model, other = make(encoder), views.clone()
    other[:, 2] = 1 - other[:, 2]
    assert not torch.allclose(model(views, K).depth_z[:, 0], model(other, K).depth_z[:, 0])
    here, there = (model(views, K, poses(seed)).depth_z for seed in (0, 1))
    assert not torch.allclose(here, there)


def test_what_is_surely_table_lies_on_it(encoder: Encoder, views: torch.Tensor) -> None:
    model = make(encoder, support_heights=(0.0,))
    torch.nn.init.zeros_(model.trunk.dense.out.weight)
    bias = model.trunk.dense.out.bias
    assert bias is not None
    with torch.no_grad():
        bias.zero_()
        bias[3] = 40.0
    found = model(views, K, poses())
    torch.testing.assert_close(found.points_world[..., 2], torch.zeros(2, 3, *SIZE), atol=1e-5, rtol=0)


@pytest.mark.parametrize("made", [{"support_heights": (0.0,)}, {"detail": True}, {"alone": "rays and detail"}])
def test_every_weight_learns_when_it_is_needed(encoder: Encoder, views: torch.Tensor, made: dict[str, Any]) -> None:
    model = make(encoder, **made).train()
    for given in GIVEN.values():
        found = model(views, **given)
        (found.points_world.square().mean() + found.mask.mean() + found.confidence.mean()).backward()
    silent = [name for name, weight in model.trunk.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert silent == []
    still = [encoder, *([model.depth_head] if model.depth_head else [])]
    assert all(weight.grad is None for part in still for weight in part.parameters())


def test_the_head_for_single_views_stays_as_it_is_in_training(encoder: Encoder, views: torch.Tensor) -> None:
    model = make(encoder, "linear").train()  # a linear head has a batch norm
    assert model.depth_head is not None
    before = {name: value.clone() for name, value in model.depth_head.head.state_dict().items()}
    model(views, K, poses())
    assert all(torch.equal(before[name], value) for name, value in model.depth_head.head.state_dict().items())
    assert model.trunk.training


@pytest.mark.parametrize("name", ALONE)
def test_the_trunk_begins_where_the_head_for_single_views_is(encoder: Encoder, views: torch.Tensor, name: str) -> None:
    """And with anything else to say, it would have to find all of it anew."""
    model, head = make(encoder, name), head_for_one(encoder, name)
    given = (K, poses())
    alone = head(views.flatten(0, 1), *(part.flatten(0, 1) for part in given))
    found = model(views, *given)
    torch.testing.assert_close(found.depth_z.flatten(0, 1), alone.depth, rtol=0.02, atol=0)
    torch.testing.assert_close(found.confidence.flatten(0, 1), alone.confidence, rtol=0.05, atol=0)
    assert not torch.allclose(
        model(views, K).depth_z, found.depth_z, rtol=0.05
    )  # without poses, the trunk is by itself


def test_what_another_view_says_by_itself_moves_the_gaps_to_it_alone(encoder: Encoder, views: torch.Tensor) -> None:
    model, told = make(encoder, "support"), Told(3, SIZE, K, poses())
    tokens = encoder.intermediate(views.flatten(0, 1), blocks=model.taps)
    said = model._measure_singly(tokens, told, views.flatten(0, 1))
    assert said is not None
    nearer = said.log_depth.clone()
    nearer[:, 1:] -= 0.1
    described = model.trunk.matcher.cells.describe(tokens[-1])
    before, after = (
        model.trunk.matcher.compare_cells(described, told, None, SingleView(said.numbers, depth))
        for depth in (said.log_depth, nearer)
    )
    assert before is not None
    assert after is not None
    change = (after - before).unflatten(0, (2, 3))[:, 0]  # of view 0: alike, gap, seen, and what it says itself
    gaps = slice(len(AROUND), 2 * len(AROUND))
    assert not change[:, : len(AROUND)].any()
    assert not change[:, gaps.stop :].any()
    moved = change[:, gaps][change[:, gaps] != 0]
    assert len(moved) > 500
    assert moved.min() > 0  # nearer surfaces: points lie farther behind them
    assert moved.max().item() == pytest.approx(0.1, abs=1e-4)


def test_detail_sees_the_pictures_and_compares_them_across_views(encoder: Encoder, views: torch.Tensor) -> None:
    model = make(encoder, detail=True)
    tokens = encoder.intermediate(views.flatten(0, 1), blocks=model.taps)
    other = views.clone()
    other[:, 1] = 1 - other[:, 1]
    told, untold = (
        [model(images, K, where, tokens=tokens).depth_z[:, 0] for images in (views, other)] for where in (poses(), None)
    )
    assert not torch.allclose(*told)  # the other view's pixels count through the sweep
    assert torch.equal(untold[0], untold[1])  # which takes poses


def test_a_sweep_agrees_at_the_depth_of_the_surface() -> None:
    """A table with a smooth pattern, seen by three cameras: the best of the swept depths is the true one."""
    size, heights = (24, 32), (0.6, 0.7, 0.6)
    k = torch.tensor([[30.0, 0, 16], [0, 30, 12], [0, 0, 1]]).expand(1, 3, 3, 3)
    cam2world = torch.diag(torch.tensor([1.0, -1, -1, 1])).repeat(1, 3, 1, 1)
    cam2world[0, :, :3, 3] = torch.tensor([[0.0, 0, heights[0]], [0.15, 0.05, heights[1]], [-0.4, 0, heights[2]]])
    surfaces = torch.tensor(heights)[None, :, None, None].expand(1, 3, *size)
    points = transform(cam2world, unproject(surfaces, k))
    waves = torch.randn(3, 16, generator=torch.Generator().manual_seed(0)) * 6
    pattern = torch.cat([(points @ waves).sin(), (points @ waves).cos()], dim=-1)
    features = F.normalize(pattern, dim=-1).permute(0, 1, 4, 2, 3)

    depths = torch.tensor([0.4, 0.5, 0.6, 0.75, 1.0])
    alike, gap, shares = plane_sweep(features, k, cam2world, size, depths, surfaces.log())
    seen = (shares[0, 0] > 0).all(dim=0)
    assert seen.float().mean() > 0.4
    assert (alike[0, 0].argmax(dim=0)[seen] == 2).float().mean() > 0.97
    assert alike[0, 0, 2][seen].mean() > 0.95
    assert set(shares.unique().tolist()) == {0, 0.5, 1}  # of two other views
    assert not gap[shares == 0].any()
    assert not alike[shares == 0].any()
    one = shares[0, 1, :, 12, 16] == 0.5  # of view 1's middle, which view 2 does not see
    behind = torch.tensor([(heights[0] + depth - heights[1]) / heights[0] for depth in depths]).log()
    torch.testing.assert_close(gap[0, 1, one, 12, 16], behind.clamp(-GAP, GAP)[one], atol=1e-5, rtol=0)
    assert one.sum() > 2

    own = (surfaces.log()[:, :, None] + torch.tensor([-0.1, 0, 0.1])[:, None, None]).exp()  # depths of each cell's own
    alike, gap, shares = plane_sweep(features, k, cam2world, size, own, surfaces.log())
    assert (alike.argmax(dim=2)[(shares > 0).all(dim=2)] == 1).float().mean() > 0.97
    torch.testing.assert_close(gap[:, :, 1], torch.zeros(1, 3, *size), atol=1e-5, rtol=0)
    assert not plane_sweep(features, k, cam2world, size, own).gap.any()


def test_swept_depths_are_even_in_disparity() -> None:
    found = 1 / sweep_depths(5, nearest=0.5, farthest=2)
    torch.testing.assert_close(found, torch.tensor([2.0, 1.625, 1.25, 0.875, 0.5]))


def test_points_project_into_the_views_that_saw_them(encoder: Encoder, views: torch.Tensor) -> None:
    found = make(encoder)(views, K, poses())
    pixels, depth = project(found.points_cam, found.intrinsics)
    torch.testing.assert_close(pixels[0, 1, 7, 9], torch.tensor([9.5, 7.5]), atol=1e-3, rtol=0)
    torch.testing.assert_close(depth, found.depth_z)


@pytest.mark.parametrize("alone", [None, "support"])
def test_a_folder_gives_the_same_model_back(
    encoder: Encoder, views: torch.Tensor, tmp_path: Path, alone: str | None
) -> None:
    encoder.save_pretrained(tmp_path / "encoder")
    encoder = load_encoder(tmp_path / "encoder")
    settings = MultiViewSettings(width=24, heads=2, bins=6, detail=True)
    head = head_for_one(encoder, alone) if alone else None
    model = MultiViewModel(encoder, settings, depth_head=head).eval()
    model.save_pretrained(tmp_path / "model")
    again = load_multiview(tmp_path / "model")
    assert again.settings == model.settings
    assert kind_of(tmp_path / "model") == "multiview"
    with pytest.raises(CheckpointError, match="does not say of what kind"):
        kind_of(tmp_path / "encoder")
    for given in ({}, {"cam2world": poses()}):
        torch.testing.assert_close(again(views, K, **given).depth_z, model(views, K, **given).depth_z)
    with pytest.raises(CheckpointError, match="'multiview', not 'depth'"):
        load_depth(tmp_path / "model", encoder=encoder)


def test_what_cannot_be_is_refused(encoder: Encoder, views: torch.Tensor) -> None:
    model = make(encoder)
    with pytest.raises(DataError, match="single view"):
        model(views[:, :1])
    with pytest.raises(DataError, match=r"\[b v 3 h w\], all of one size"):
        model(views[0])
    tokens = encoder.intermediate(views.flatten(0, 1), blocks=model.taps)
    with pytest.raises(DataError, match="Tokens of 6 images, but 1 x 3 views"):
        model(views[:1], tokens=tokens)
    with pytest.raises(SettingError, match="Tokens of 2 blocks"):
        model(views, K, poses(), tokens=[*tokens, *tokens])
    with pytest.raises(SettingError, match="fix the scale"):
        model(views, K, poses(), torch.ones(2))
    with pytest.raises(DataError, match=r"intrinsics must be \[2, 3, 3, 3\]"):
        model(views, K[:, :2])
    with pytest.raises(DataError, match="singular"):
        model(views, 0 * K)
    with pytest.raises(DataError, match="no rotation"):
        model(views, K, poses() * torch.tensor([1.2, 1, 1, 1])[:, None])
    with pytest.raises(DataError, match="above 0"):
        model(views, scale=torch.tensor([1.0, -1]))
    with pytest.raises(SettingError, match="'sigmoid' is for one camera"):
        MultiViewSettings(alone=DepthSettings(coding="sigmoid"))
    with pytest.raises(SettingError, match=r"single views has \(0.0, -0.9\)"):
        MultiViewSettings(alone=DepthSettings(**ALONE["support"]), support_heights=(0.1,))
    with pytest.raises(SettingError, match="on another encoder"):
        MultiViewModel(create_encoder("pixio_vitt16", seed=5), depth_head=head_for_one(encoder, "linear"))
    with pytest.raises(SettingError, match="heads must divide"):
        MultiViewSettings(width=25, heads=2)
