"""Where cameras have got to: the solver, what it is fed with, and the two ways to ask a model."""

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from pixio_robot import Encoder
from pixio_robot.errors import DataError, SettingError
from pixio_robot.geometry.cameras import compose, invert, project, rays, rotations, transform, unproject
from pixio_robot.geometry.depth import DepthModel, DepthSettings
from pixio_robot.geometry.drift import DriftFinder, Landmarks, middles_of
from pixio_robot.geometry.heads import picture
from pixio_robot.geometry.matching import Told
from pixio_robot.geometry.multiview import MultiViewModel
from pixio_robot.geometry.pnp import look_at, refine_pose
from pixio_robot.geometry.trunk import MultiViewSettings

SIZE = (48, 64)
K = torch.tensor([[70.0, 0, 31], [0, 71, 25], [0, 0, 1]]).expand(2, 3, 3, 3)
SPREAD = math.radians(5), 0.02


def drifted(count: int, seed: int = 0) -> torch.Tensor:
    random, drift = torch.Generator().manual_seed(seed), torch.eye(4).repeat(count, 1, 1)
    drift[:, :3, :3] = rotations(SPREAD[0] * torch.randn(count, 3, generator=random))
    drift[:, :3, 3] = SPREAD[1] * torch.randn(count, 3, generator=random)
    return drift


def poses() -> torch.Tensor:
    """Three cameras that look down from about 0.8 m, two scenes of them [2 3 4 4]."""
    made = torch.diag(torch.tensor([1.0, -1, -1, 1])).repeat(2, 3, 1, 1)
    made[..., :3, 3] = torch.tensor([[0, 0, 0.8], [0.1, 0, 0.7], [-0.05, 0.1, 0.9]])
    return compose(made, drifted(6, seed=1).unflatten(0, (2, 3)))


@pytest.fixture
def views() -> torch.Tensor:
    return torch.rand(2, 3, 3, *SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model(encoder: Encoder) -> MultiViewModel:
    torch.manual_seed(0)
    head = DepthModel(encoder, DepthSettings(coding="support", rays=True, detail=True))
    head.start_at(0.8, focal=70)
    return MultiViewModel(encoder, MultiViewSettings(width=24, heads=2, bins=6, detail=True), depth_head=head).eval()


def scene(count: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Poses world2cam, points in the world, and where they are seen."""
    truth = torch.eye(4).repeat(count, 1, 1)
    truth[:, 2, 3] = 1.0
    points = 0.3 * torch.randn(count, 40, 3, generator=torch.Generator().manual_seed(3))
    return truth, points, look_at(transform(truth, points[:, None])[:, 0])[0]


def test_a_camera_is_found_by_the_points_that_it_sees() -> None:
    truth, points, seen = scene()
    prior, sure = compose(drifted(3), truth), torch.full((3, 40, 2), 1e6)
    assert (prior - truth).abs().max() > 0.05
    torch.testing.assert_close(refine_pose(prior, points, seen, sure, SPREAD), truth, atol=1e-4, rtol=0)
    wrong = torch.where(torch.arange(40)[:, None] < 10, seen + 1, seen)
    known = torch.where(torch.arange(40)[:, None] < 10, 1e-3, sure)
    torch.testing.assert_close(refine_pose(prior, points, wrong, known, SPREAD), truth, atol=1e-3, rtol=0)
    behind = torch.where(torch.arange(40)[:, None] < 5, points - 3, points)
    torch.testing.assert_close(refine_pose(prior, behind, seen, sure, SPREAD), truth, atol=1e-3, rtol=0)


def test_what_says_nothing_leaves_the_prior_and_what_is_unsure_goes_part_of_the_way() -> None:
    truth, points, seen = scene()
    prior = compose(drifted(3), truth)
    unsure = torch.zeros(3, 40, 2)
    torch.testing.assert_close(refine_pose(prior, points, seen, unsure, SPREAD), prior, atol=1e-6, rtol=0)
    rest = [(refine_pose(prior, points, seen, unsure + weight, SPREAD) - truth).norm() for weight in (1.0, 10.0, 100.0)]
    assert (prior - truth).norm() > rest[0] > rest[1] > rest[2]


def test_the_pose_takes_gradients_to_places_and_weights() -> None:
    truth, points, seen = scene()
    prior = compose(drifted(3), truth)
    seen, weights = seen.requires_grad_(), torch.full((3, 40, 2), 10.0, requires_grad=True)
    (refine_pose(prior, points, seen, weights, SPREAD) - truth).square().sum().backward()
    for part in (seen, weights):
        assert part.grad is not None
        assert part.grad.isfinite().all()
        assert part.grad.abs().sum() > 0


def test_the_jacobian_is_the_derivative() -> None:
    points = torch.tensor([[[0.2, -0.1, 0.9], [-0.3, 0.2, 1.4]]], dtype=torch.float64)

    def seen(step: torch.Tensor) -> torch.Tensor:
        return look_at(points @ rotations(step[:3]).mT + step[3:])[0]

    told = torch.autograd.functional.jacobian(seen, torch.zeros(6, dtype=torch.float64))
    assert isinstance(told, torch.Tensor)
    torch.testing.assert_close(look_at(points)[1], told)


def test_a_prior_is_corrected_but_for_view_0(model: MultiViewModel, views: torch.Tensor) -> None:
    told, finder = poses(), model.finder
    assert finder is not None
    untrained = model.correct_poses(views, K, told)
    torch.testing.assert_close(untrained, told, atol=0.02, rtol=0)  # it begins with hardly any drift
    with torch.no_grad():
        finder.out.bias.copy_(torch.tensor([0.2, 0.0, 2.0, 2.0]))  # all is seen farther right: it looks to the left
    found = model.correct_poses(views, K, told)
    torch.testing.assert_close(found[:, 0], told[:, 0], atol=0, rtol=0)
    moved = compose(invert(told), found)[:, 1:]
    assert (moved[..., 0, 2] < -0.02).all()
    whole = model(views, K, pose_prior=told)
    torch.testing.assert_close(whole.cam2world, found)
    torch.testing.assert_close(whole.points_world, transform(found, unproject(whole.depth_z, K)))
    assert whole.source == {"intrinsics": "given", "cam2world": "predicted", "scale": "predicted"}
    assert not torch.allclose(whole.depth_z, model(views, K, found).depth_z)  # the trunk knows that it is rough


def test_each_view_is_corrected_by_itself(model: MultiViewModel, views: torch.Tensor) -> None:
    assert model.finder is not None
    torch.nn.init.normal_(model.finder.out.weight, std=0.05, generator=torch.Generator().manual_seed(0))
    told = poses()
    whole, first = (model.correct_poses(views[:, :n], K[:, :n], told[:, :n]) for n in (3, 2))
    torch.testing.assert_close(whole[:, :2], first)
    assert not torch.allclose(whole[:, 1:], told[:, 1:], atol=1e-3)
    other = model.correct_poses(views[[1, 0]], K, told[[1, 0]])
    torch.testing.assert_close(other[[1, 0]], whole, atol=1e-4, rtol=1e-3)


def test_views_are_compared_where_a_landmark_is(model: MultiViewModel, views: torch.Tensor) -> None:
    """Where the same picture is seen twice, each landmark is most alike to the cell at its own place."""
    assert model.finder is not None
    same = views[:1, :1].expand(1, 2, 3, *SIZE)
    tokens = model.encoder.intermediate(same.flatten(0, 1), blocks=model.taps)[-1]
    told = Told(2, SIZE, K[:1, :2], poses()[:1, :2], exact=False)
    alike = model.finder.compare(tokens, told, picture(model.encoder, same.flatten(0, 1), torch.device("cpu")))
    assert alike.shape == (1, tokens.patches.shape[1], 12, 16)
    best = alike.flatten(2).argmax(dim=-1)[0]
    middles = middles_of(SIZE, tokens.grid, like=alike).flatten(0, 1)
    off = torch.stack([best % 16, best // 16], dim=-1) - (middles // 4).long()
    assert off.abs().max() <= 1
    assert (off == 0).float().mean() > 0.8


def test_landmarks_are_what_the_depth_head_sees(model: MultiViewModel, views: torch.Tensor) -> None:
    assert model.depth_head is not None
    images, k, told = views[:, 0], K[:, 0], poses()[:, 0]
    tokens = model.encoder.intermediate(images, blocks=model.taps)
    found = model.landmarks(tokens, k, told, images)
    depth = model.depth_head(images, k, told)
    pixels, far = project(transform(invert(told), found.points[:, None]), k)
    middles = middles_of(SIZE, tokens[0].grid, like=pixels).flatten(0, 1)
    torch.testing.assert_close(pixels[:, 0], middles.expand(2, -1, -1), atol=1e-3, rtol=0)
    columns, rows = middles.long().unbind(-1)
    torch.testing.assert_close(far[:, 0], depth.depth[:, rows, columns])
    torch.testing.assert_close(found.said[..., 0].exp(), depth.depth[:, rows, columns])
    torch.testing.assert_close(1 + found.said[..., 1].exp(), depth.confidence[:, rows, columns])
    assert found.said.shape[-1] == model.depth_head.settings.channels
    assert ((found.said[..., 2:] > 0) & (found.said[..., 2:] < 1)).all()


def test_a_finder_that_is_given_matches_finds_the_pose(encoder: Encoder, views: torch.Tensor) -> None:
    """The network replaced by the truth, what is left is geometry: frames, directions and units."""
    truth, finder = poses(), DriftFinder(encoder.spec.width, (15.0, 0.06), channels=1).eval()
    told = Told(3, SIZE, K, torch.cat([truth[:, :1], compose(truth[:, 1:], drifted(4).unflatten(0, (2, 2)))], 1), False)
    tokens = encoder.intermediate(views.flatten(0, 1), blocks=[encoder.spec.depth - 1])[-1]
    points = transform(truth[:, 0], 0.8 * rays(K[:, 0], SIZE))[:, 8::16, 8::16].flatten(1, 2)
    known = Landmarks(points, torch.zeros(*points.shape[:2], 1))
    at = look_at(transform(invert(truth[:, 1:]), points[:, None, None]).flatten(0, 1)[:, 0])[0]
    pixels = picture(encoder, views.flatten(0, 1), torch.device("cpu"))
    for sighting in finder(tokens, told, pixels, known):
        assert sighting.seen.shape == at.shape
        there = look_at(transform(sighting.world2cam, points.repeat_interleave(2, 0)[:, None])[:, 0])[0]
        torch.testing.assert_close(sighting.seen, there, atol=0.2, rtol=0)  # hardly any correction yet
        sure = torch.full_like(at, 1e6)
        found = refine_pose(sighting.world2cam, points.repeat_interleave(2, 0), at, sure, finder.spread)
        torch.testing.assert_close(invert(found), truth[:, 1:].flatten(0, 1), atol=3e-3, rtol=0)


def test_views_of_an_encoder_of_half_precision_are_read(
    model: MultiViewModel, encoder: Encoder, views: torch.Tensor
) -> None:
    half = copy.deepcopy(encoder).bfloat16()
    rough = MultiViewModel(half, model.settings, depth_head=DepthModel(half, model.settings.alone)).eval()
    rough.stored().load_state_dict(model.stored().state_dict())
    torch.testing.assert_close(rough(views, K, poses()).depth_z, model(views, K, poses()).depth_z, atol=0, rtol=0.02)
    found, exact = (one.correct_poses(views, K, poses()) for one in (rough, model))
    torch.testing.assert_close(found, exact, atol=1e-3, rtol=0)


def test_every_weight_of_the_finder_learns(model: MultiViewModel, views: torch.Tensor) -> None:
    finder = model.finder
    assert finder is not None
    tokens = model.encoder.intermediate(views.flatten(0, 1), blocks=model.taps)
    known = model.landmarks([one.map(lambda part: part[::3]) for one in tokens], K[:, 0], poses()[:, 0], views[:, 0])
    pixels = picture(model.encoder, views.flatten(0, 1), torch.device("cpu"))
    found = finder.train()(tokens[-1], Told(3, SIZE, K, poses(), exact=False), pixels, known)
    sum(one.world2cam.square().sum() + F.relu(one.seen).sum() for one in found).backward()
    silent = {name for name, weight in finder.named_parameters() if weight.grad is None or not weight.grad.any()}
    assert silent == set()


def test_what_cannot_be_corrected_is_refused(model: MultiViewModel, encoder: Encoder, views: torch.Tensor) -> None:
    given: dict[str, Any] = {"pose_prior": poses()}
    with pytest.raises(SettingError, match="train with a depth head"):
        MultiViewModel(encoder, replace(model.settings, alone=None))(views, K, **given)
    with pytest.raises(SettingError, match="needs intrinsics"):
        model(views, **given)
    with pytest.raises(SettingError, match="stands in for cam2world"):
        model(views, K, poses(), **given)
    with pytest.raises(DataError, match=r"pose_prior must be \[2, 3, 4, 4\]"):
        model(views, K, pose_prior=poses()[:1])
    with pytest.raises(DataError, match="single view"):
        model.correct_poses(views[:, :1], K[:, :1], poses()[:, :1])
    tokens = encoder.intermediate(views.flatten(0, 1), blocks=model.taps)
    with pytest.raises(SettingError, match=r"Tokens of \d blocks"):
        model.correct_poses(views, K, poses(), tokens=[*tokens, *tokens])
    for reach in ((0.0, 0.05), (15.0, 0.0), (100.0, 0.05), (15.0,)):
        with pytest.raises(SettingError, match="degrees, above 0"):
            MultiViewSettings(drift=reach)
