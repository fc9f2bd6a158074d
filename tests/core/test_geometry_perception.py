import copy
from typing import Any

import pytest
import torch

from pixio_robot import Encoder, Tokens, VisualFeatureAdapter, create_encoder
from pixio_robot.errors import ImageError, SettingError, UnknownNameError
from pixio_robot.geometry.cameras import project
from pixio_robot.geometry.depth import DepthModel, DepthSettings
from pixio_robot.geometry.perception import Calibration, Perception

K = torch.tensor([[60.0, 0, 32], [0, 60, 32], [0, 0, 1]])


@pytest.fixture
def views(images: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"top": images[0], "wrist": images[1]}


@pytest.fixture
def encoded(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Every image that the encoder sees from now on."""
    seen, encode = [], encoder.intermediate

    def noted(images: torch.Tensor, **settings: Any) -> list[Tokens]:
        seen.extend(images)
        return encode(images, **settings)

    monkeypatch.setattr(encoder, "intermediate", noted)
    return seen


def make(encoder: Encoder, **settings: Any) -> Perception:
    torch.manual_seed(0)
    adapter = VisualFeatureAdapter(32, dim=16, cameras=2, class_tokens=3)
    return Perception(encoder, adapter=adapter.eval(), depth=DepthModel(encoder, DepthSettings(**settings)).eval())


def test_all_answers_of_a_frame_cost_one_pass_for_each_camera(
    encoder: Encoder, views: dict[str, torch.Tensor], encoded: list[torch.Tensor]
) -> None:
    seen, cameras = make(encoder), {name: Calibration(K) for name in views}
    seen.policy(0, views)
    assert len(encoded) == 2
    seen.depth(0, views, cameras)
    seen.points(0, views, cameras)
    assert len(encoded) == 2
    seen.depth(1, views, cameras)
    assert len(encoded) == 4
    seen.policy(0, views)  # the moment before is remembered, for policies with history
    assert len(encoded) == 4
    seen.see(2, views)
    seen.see(0, views)
    assert len(encoded) == 8


def test_answers_are_those_of_the_parts_alone(encoder: Encoder, views: dict[str, torch.Tensor]) -> None:
    seen, cameras = make(encoder, detail=True), {name: Calibration(K) for name in views}
    batch = torch.stack(list(views.values()))
    tokens = encoder(batch)
    assert seen._adapter is not None
    assert seen._depth is not None
    alone = seen._adapter([tokens.map(lambda part: part[:1]), tokens.map(lambda part: part[1:])])
    torch.testing.assert_close(seen.policy(0, views), alone)
    depth = seen._depth(batch, K.expand(2, 3, 3))
    for number, found in enumerate(seen.depth(0, views, cameras).values()):
        torch.testing.assert_close(found.depth[0], depth.depth[number])
        torch.testing.assert_close(found.confidence[0], depth.confidence[number])


def test_a_head_reads_an_encoder_of_half_precision(encoder: Encoder, views: dict[str, torch.Tensor]) -> None:
    cameras = {name: Calibration(K, torch.eye(4)) for name in views}
    for settings in ({"head": "linear"}, {"rays": True, "detail": True}):
        exact, rough = (make(one, **settings) for one in (encoder, copy.deepcopy(encoder).bfloat16()))
        for name, found in rough.depth(0, views, cameras).items():
            assert found.depth.dtype == torch.float32
            torch.testing.assert_close(found.depth, exact.depth(0, views, cameras)[name].depth, atol=0, rtol=0.02)


def test_points_lie_where_their_pixels_are_and_follow_the_pose(
    encoder: Encoder, views: dict[str, torch.Tensor]
) -> None:
    seen = make(encoder)
    pose = torch.eye(4)
    pose[:3, 3] = torch.tensor([1.0, 2, 3])
    found = seen.points(0, views, {"top": Calibration(K), "wrist": Calibration(K, pose)})
    pixels, _ = project(found["top"], K)
    torch.testing.assert_close(pixels[5, 9], torch.tensor([9.5, 5.5]), atol=1e-3, rtol=0)
    alone = seen.points(1, views, {"top": Calibration(K), "wrist": Calibration(K)})
    torch.testing.assert_close(found["wrist"], alone["wrist"] + pose[:3, 3])


def test_a_calibration_is_that_of_the_image_as_given(encoder: Encoder) -> None:
    image = torch.rand(3, 128, 96)
    resized = Perception(encoder, depth=make(encoder)._depth, size=(64, 48))
    given = torch.tensor([[90.0, 0, 48], [0, 90, 64], [0, 0, 1]])
    pixels, _ = project(resized.points(0, {"top": image}, {"top": Calibration(given)})["top"], given)
    torch.testing.assert_close(pixels[10, 20], 2 * torch.tensor([20.5, 10.5]), atol=1e-3, rtol=0)


def test_cameras_may_differ_in_size(encoder: Encoder) -> None:
    seen = make(encoder)
    views = {"a": torch.rand(3, 64, 64), "b": torch.rand(3, 32, 96), "c": torch.rand(3, 64, 64)}
    found = seen.depth(0, views, {name: Calibration(K) for name in views})
    assert [tuple(one.depth.shape) for one in found.values()] == [(1, 64, 64), (1, 32, 96), (1, 64, 64)]


def test_what_is_missing_is_told(encoder: Encoder, views: dict[str, torch.Tensor]) -> None:
    other = create_encoder("pixio_vitt16", seed=5, width=32, depth=4, heads=4, image_size=64)
    with pytest.raises(SettingError, match=r"load_depth\(folder, encoder=encoder\)"):
        Perception(encoder, depth=DepthModel(other))
    with pytest.raises(SettingError, match="no adapter"):
        Perception(encoder).policy(0, views)
    with pytest.raises(SettingError, match="no depth model"):
        Perception(encoder).depth(0, views)
    with pytest.raises(ImageError, match="Divide by 255"):
        Perception(encoder, size=(32, 32)).see(0, {"top": 255 * torch.rand(3, 64, 64)})
    with pytest.raises(SettingError, match="missing: wrist"):
        make(encoder).points(0, views, {"top": Calibration(K)})
    with pytest.raises(UnknownNameError, match="'wrist'"):
        make(encoder).depth(0, views, {"wirst": Calibration(K)})
