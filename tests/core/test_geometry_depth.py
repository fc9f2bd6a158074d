from pathlib import Path
from typing import Any

import pytest
import torch

from pixio_robot import Encoder, create_encoder, load_encoder
from pixio_robot.errors import CheckpointError, DataError, SettingError, UnknownNameError
from pixio_robot.geometry.cameras import plane_depth
from pixio_robot.geometry.depth import DepthModel, DepthSettings, load_depth

K = torch.tensor([[60.0, 0, 40], [0, 60, 24], [0, 0, 1]]).expand(2, 3, 3)
SIZE = (48, 80)


def looking_down(height: float = 0.7) -> torch.Tensor:
    pose = torch.diag(torch.tensor([1.0, -1, -1, 1]))
    pose[2, 3] = height
    return pose.expand(2, 4, 4)


@pytest.fixture
def wide_images() -> torch.Tensor:
    return torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(2))


def make(encoder: Encoder, **settings: Any) -> DepthModel:
    torch.manual_seed(0)
    return DepthModel(encoder, DepthSettings(**settings)).eval()


@pytest.mark.parametrize("head", ["linear", "tiny"])
@pytest.mark.parametrize("coding", ["sigmoid", "canonical", "support"])
def test_depth_is_metric_positive_and_as_large_as_the_image(
    encoder: Encoder, wide_images: torch.Tensor, head: str, coding: str
) -> None:
    found = make(encoder, head=head, coding=coding, rays=True)(wide_images, K, looking_down())
    for part in found:
        assert part.shape == (2, *SIZE)
        assert part.dtype == torch.float32
    assert (found.depth > 0).all()
    assert (found.confidence > 1).all()
    assert found.depth.std() > 0


def test_a_lens_twice_as_long_sees_twice_as_far(encoder: Encoder, wide_images: torch.Tensor) -> None:
    model = make(encoder, coding="canonical")
    longer = K * torch.tensor([[2.0], [2], [1]])
    torch.testing.assert_close(model(wide_images, longer).depth, 2 * model(wide_images, K).depth)


@pytest.mark.parametrize("plane", [0, 1])
def test_a_head_that_is_sure_of_a_plane_gets_its_depth_exactly(
    encoder: Encoder, wide_images: torch.Tensor, plane: int
) -> None:
    heights = (0.1, -0.4)
    model = make(encoder, coding="support", support_heights=heights)
    torch.nn.init.zeros_(model.head.out.weight)
    bias = model.head.out.bias
    assert bias is not None
    with torch.no_grad():
        bias.zero_()
        bias[2 + plane] = 40.0
    found = model(wide_images, K, looking_down()).depth
    torch.testing.assert_close(found, plane_depth(K, looking_down(), SIZE, heights[plane]))


def test_a_plane_that_is_out_of_sight_is_never_chosen(encoder: Encoder, wide_images: torch.Tensor) -> None:
    beside = make(encoder, coding="support", support_heights=(0.1, 5.0))  # metres above a camera that looks down
    alone = make(encoder, coding="support", support_heights=(0.1,))
    state = beside.head.state_dict()
    alone.head.load_state_dict(state | {name: state[name][:3] for name in ("out.weight", "out.bias")})
    pose = looking_down()
    torch.testing.assert_close(beside(wide_images, K, pose).depth, alone(wide_images, K, pose).depth)


def test_support_without_a_plane_is_refused() -> None:
    with pytest.raises(SettingError, match="at least one support height"):
        DepthSettings(coding="support", support_heights=())


def test_the_encoder_never_sees_the_calibration_and_the_head_does(encoder: Encoder, wide_images: torch.Tensor) -> None:
    model = make(encoder, coding="canonical", rays=True)
    tokens = encoder.intermediate(wide_images, blocks=model.taps)
    here = model.from_tokens(tokens, SIZE, K, looking_down())
    there = model.from_tokens(tokens, SIZE, K, looking_down(1.5))
    assert not torch.equal(here.depth, there.depth)
    torch.testing.assert_close(model(wide_images, K, looking_down()).depth, here.depth)


def test_detail_is_finer_than_a_patch_and_needs_the_picture(encoder: Encoder, wide_images: torch.Tensor) -> None:
    plain, sharp = (make(encoder, coding="sigmoid", detail=detail) for detail in (False, True))
    tokens = encoder.intermediate(wide_images, blocks=sharp.taps)
    changed = wide_images.clone()
    changed[:, :, 20:22, 30:32] = 1 - changed[:, :, 20:22, 30:32]
    before, after = (sharp.from_tokens(tokens, SIZE, images=images).depth for images in (wide_images, changed))
    moved = (before != after).any(dim=0)
    assert moved[20:22, 30:32].all()
    rows, columns = torch.nonzero(moved, as_tuple=True)
    assert rows.max() - rows.min() < SIZE[0] - 1 or columns.max() - columns.min() < SIZE[1] - 1
    torch.testing.assert_close(sharp(wide_images).depth, before)
    assert torch.equal(
        plain.from_tokens(tokens, SIZE, images=changed).depth, plain.from_tokens(tokens, SIZE, images=wide_images).depth
    )
    with pytest.raises(SettingError, match="pass the images"):
        sharp.from_tokens(tokens, SIZE)
    with pytest.raises(SettingError, match="choose a DPT head"):
        DepthSettings(head="linear", detail=True)


def test_a_withheld_pose_is_like_none(encoder: Encoder, wide_images: torch.Tensor) -> None:
    model = make(encoder, coding="canonical", rays=True)
    tokens = encoder.intermediate(wide_images, blocks=model.taps)
    mixed = model.from_tokens(tokens, SIZE, K, looking_down(), posed=torch.tensor([True, False])).depth
    torch.testing.assert_close(mixed[0], model.from_tokens(tokens, SIZE, K, looking_down()).depth[0])
    torch.testing.assert_close(mixed[1], model.from_tokens(tokens, SIZE, K).depth[1])


@pytest.mark.parametrize("coding", ["sigmoid", "canonical"])
def test_training_can_start_at_a_depth(encoder: Encoder, wide_images: torch.Tensor, coding: str) -> None:
    model = make(encoder, coding=coding, head="linear")
    torch.nn.init.zeros_(model.head.out.weight)
    model.start_at(0.8, focal=60)
    torch.testing.assert_close(model(wide_images, K).depth, torch.full((2, *SIZE), 0.8))


def test_only_the_head_learns(encoder: Encoder, wide_images: torch.Tensor) -> None:
    model = make(encoder, coding="sigmoid").train()
    found = model(wide_images)
    (found.depth.square().mean() + found.confidence.mean()).backward()
    assert all(parameter.grad is not None for parameter in model.head.parameters())
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_a_folder_gives_the_same_model_back(encoder: Encoder, wide_images: torch.Tensor, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path / "encoder")
    model = DepthModel(load_encoder(tmp_path / "encoder"), DepthSettings(rays=True), facts={"steps": 3})
    model.eval().save_pretrained(tmp_path / "depth")
    again = load_depth(tmp_path / "depth")
    assert again.settings == model.settings
    assert again.facts == {"steps": 3}
    torch.testing.assert_close(again(wide_images, K).depth, model(wide_images, K).depth)
    assert load_depth(tmp_path / "depth", encoder=encoder).encoder is encoder


def test_the_encoder_is_found_again_by_what_it_was_loaded_from(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own name, which the card says, may be read by nobody."""
    encoder.save_pretrained(tmp_path / "encoder")
    monkeypatch.chdir(tmp_path)
    loaded = [load_encoder(name) for name in ("encoder", "shipped:pixio_vitt16")]
    monkeypatch.chdir("/")
    for one in loaded:
        make(one).save_pretrained(tmp_path / "depth")
        assert load_depth(tmp_path / "depth").encoder.fingerprint == one.fingerprint


def test_another_encoder_a_damaged_file_and_another_kind_are_refused(encoder: Encoder, tmp_path: Path) -> None:
    make(encoder).save_pretrained(tmp_path)
    other = create_encoder("pixio_vitt16", seed=9, width=32, depth=4, heads=4, image_size=64)
    with pytest.raises(CheckpointError, match="its answers would be noise"):
        load_depth(tmp_path, encoder=other)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:1000])
    with pytest.raises(CheckpointError, match="truncated"):
        load_depth(tmp_path, encoder=encoder)
    (tmp_path / "model.safetensors").write_bytes(weights)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"tiny"', '"base"'))
    with pytest.raises(CheckpointError, match="settings promise"):
        load_depth(tmp_path, encoder=encoder)
    (tmp_path / "config.json").write_text(text.replace('"kind": "depth"', '"kind": "policy"'))
    with pytest.raises(CheckpointError, match="'policy', not 'depth'"):
        load_depth(tmp_path, encoder=encoder)
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        load_depth(tmp_path / "nowhere")


def test_missing_and_impossible_calibrations_are_told(encoder: Encoder, wide_images: torch.Tensor) -> None:
    with pytest.raises(SettingError, match=r"pass intrinsics=\[b 3 3\]"):
        make(encoder)(wide_images)
    with pytest.raises(SettingError, match="measured from planes"):
        make(encoder, coding="support")(wide_images, K)
    with pytest.raises(DataError, match="degrees"):
        make(encoder)(wide_images, K / 1e4 + torch.diag(torch.tensor([0, 0, 1 - 1e-4])))
    with pytest.raises(DataError, match="no rotation"):
        make(encoder, rays=True)(wide_images, K, 2 * looking_down() - torch.diag(torch.tensor([0.0, 0, 0, 1])))
    with pytest.raises(UnknownNameError, match="'canonical'"):
        DepthSettings(coding="cannonical")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UnknownNameError, match="'linear'"):
        DepthSettings(head="linar")
