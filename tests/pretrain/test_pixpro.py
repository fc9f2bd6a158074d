import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from pixio_pretrain.config import ParallelConfig, RunConfig
from pixio_pretrain.objectives.backbones import ResNetFeatures
from pixio_pretrain.objectives.cells import cell_centers, find_positives
from pixio_pretrain.objectives.masked import PixioConfig
from pixio_pretrain.objectives.pixpro import PixPro, PixProConfig, consistency_loss
from pixio_pretrain.objectives.propagation import Propagation
from pixio_robot import load_encoder
from pixio_robot.errors import ImageError, SettingError, UnknownNameError
from pixio_robot.images import normalize

VIT: dict[str, Any] = {"encoder": "pixio_vitt16", "width": 16, "depth": 2, "heads": 2, "patch_size": 8}
VIT |= {"image_size": 24, "class_tokens": 2, "projection_hidden": 12, "projection_width": 8}
RESNET: dict[str, Any] = {"encoder": "resnet18", "image_size": 64, "projection_hidden": 12, "projection_width": 8}
WHOLE = [0.0, 0.0, 1.0, 1.0]


def tiny(seed: int = 0, **changes: Any) -> PixPro:
    """A transformer where no ``encoder`` is named."""
    model = PixProConfig(**(changes if "encoder" in changes else VIT | changes)).build()
    model.initialize(torch.Generator().manual_seed(seed))
    return model


def pairs(model: PixPro, count: int = 3, crop_scale: float = 0.3) -> dict[str, Tensor]:
    random = np.random.default_rng(0)
    make, samples = model.samples(crop_scale=crop_scale), []
    for _ in range(count):
        noise = Image.fromarray(random.integers(0, 256, (8, 10, 3), dtype=np.uint8))
        samples.append(make(noise.resize((80, 64)), random))
    return {key: torch.from_numpy(np.stack([sample[key] for sample in samples])) for key in samples[0]}


def meetings(box: list[float], other: list[float], threshold: float = 0.7, grid: tuple[int, int] = (2, 2)) -> Tensor:
    return find_positives(torch.tensor([box]), torch.tensor([other]), grid, threshold)[0].int()


# --- cells ---


def test_cells_lie_at_the_centres_of_their_share_of_the_box_row_by_row() -> None:
    centers = cell_centers(torch.tensor([[0.2, 0.1, 0.8, 0.5], [0.8, 0.1, 0.2, 0.5]]), (2, 3))
    expected = [[0.3, 0.2], [0.5, 0.2], [0.7, 0.2], [0.3, 0.4], [0.5, 0.4], [0.7, 0.4]]
    torch.testing.assert_close(centers[0], torch.tensor(expected))
    torch.testing.assert_close(centers[1], centers[0].view(2, 3, 2).flip(1).view(6, 2))  # flipped


def test_cells_of_equal_views_meet_themselves_and_across_an_edge_only_beyond_its_share_of_the_diagonal() -> None:
    assert torch.equal(meetings(WHOLE, WHOLE), torch.eye(4, dtype=torch.int))  # an edge is 0.7071 diagonals
    beside = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 1], [1, 0, 1, 1], [0, 1, 1, 1]], dtype=torch.int)
    assert torch.equal(meetings(WHOLE, WHOLE, 0.71), beside)


def test_cells_of_a_flipped_view_meet_their_mirror_images() -> None:
    mirrored = torch.eye(4, dtype=torch.int)[[1, 0, 3, 2]]
    assert torch.equal(meetings(WHOLE, [1.0, 0.0, 0.0, 1.0]), mirrored)
    assert torch.equal(meetings([1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0]), torch.eye(4, dtype=torch.int))


def test_cells_of_a_view_moved_by_one_cell_meet_their_neighbours() -> None:
    moved = torch.zeros(4, 4, dtype=torch.int)
    moved[1, 0] = moved[3, 2] = 1  # right column, left column
    assert torch.equal(meetings([0.0, 0.0, 0.5, 0.5], [0.25, 0.0, 0.75, 0.5]), moved)


def test_distances_are_measured_in_diagonals_of_the_larger_cell_whichever_view_has_it() -> None:
    # Cells of the whole image are 0.5 wide (diagonal 0.7071), those of its upper left quarter 0.25. From a cell of the
    # quarter, the whole's first cell is 0.1768 / 0.7071 = 0.25 away; the second, from the right column, 0.3953 / 0.7071
    # = 0.56 and from the left one 0.90; the last, from the nearest cell, 0.5303 / 0.7071 = 0.75.
    expected = torch.tensor([[1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 1, 1], [0, 0, 0, 0]], dtype=torch.int)
    assert torch.equal(meetings(WHOLE, [0.0, 0.0, 0.5, 0.5]), expected)
    assert torch.equal(meetings([0.0, 0.0, 0.5, 0.5], WHOLE), expected.T)


def test_views_apart_have_no_cells_that_meet() -> None:
    assert meetings([0.0, 0.0, 0.3, 0.3], [0.6, 0.6, 1.0, 1.0]).sum() == 0


# --- propagation and loss ---


def test_propagation_is_that_of_a_map_worked_by_hand() -> None:
    # Cells (1, 0), (3, 4) and (0, -2): cosines 0.6, 0 and -0.8, of which the last is cut off at 0.
    x = torch.tensor([[[1.0, 3.0, 0.0], [0.0, 4.0, -2.0]]]).view(1, 2, 1, 3)
    first, second, third = torch.tensor([1.0, 0.0]), torch.tensor([0.6, 0.8]), torch.tensor([0.0, -1.0])
    for gamma in (1.0, 2.0):
        share = 0.6**gamma
        expected = torch.stack([first + share * second, share * first + second, third], dim=1).view(1, 2, 1, 3)
        torch.testing.assert_close(Propagation(2, gamma=gamma, layers=0)(x), expected)


def test_propagated_values_are_transformed_and_weights_are_not() -> None:
    x = torch.tensor([[[1.0, 3.0], [0.0, 4.0]]]).view(1, 2, 1, 2)
    module = Propagation(2, gamma=2.0, layers=1)
    assert isinstance(module.transform, nn.Conv2d)
    nn.init.zeros_(module.transform.bias)
    with torch.no_grad():
        module.transform.weight.copy_(torch.tensor([[0.0, 5.0], [5.0, 0.0]]).view(2, 2, 1, 1))  # swaps the channels
    first, second = torch.tensor([0.0, 1.0]), torch.tensor([0.8, 0.6])
    expected = torch.stack([first + 0.36 * second, 0.36 * first + second], dim=1).view(1, 2, 1, 2)
    torch.testing.assert_close(module(x), expected)


def test_gradients_flow_through_the_weights_of_the_propagation() -> None:
    x = torch.randn(1, 4, 2, 2, requires_grad=True)
    module = Propagation(4, layers=1)
    nn.init.zeros_(module.transform.weight)  # values are the bias now, whatever x is
    module(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("layers", [0, 1, 2])
def test_every_propagation_has_finite_gradients_where_cells_have_nothing_in_common(gamma: float, layers: int) -> None:
    x = torch.eye(4).view(1, 4, 2, 2).requires_grad_()
    Propagation(4, gamma=gamma, layers=layers)(x).square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_the_loss_averages_over_positives_of_an_image_then_over_images_and_views_apart_count_as_zero() -> None:
    alike = torch.tensor([[[1.0, 0.5], [-0.5, 0.2]]] * 3, requires_grad=True)
    positives = torch.tensor([[[1, 0], [0, 1]], [[1, 1], [0, 0]], [[0, 0], [0, 0]]]).bool()
    loss = consistency_loss(alike, positives)
    assert loss.item() == pytest.approx(-2 * (0.6 + 0.75 + 0) / 3, abs=1e-5)
    loss.backward()
    assert alike.grad is not None
    assert torch.equal(alike.grad != 0, positives)


def slow_loss(output: Any, boxes: Tensor, threshold: float) -> float:
    """The pixel loss, cell by cell."""
    total = 0.0
    for predictions, keys in zip(output.predictions, output.keys, strict=True):
        count, _, _, rows, columns = keys.shape
        cells = [(row, column) for row in range(rows) for column in range(columns)]
        for (image, one), other in [((image, one), 1 - one) for image in range(count) for one in (0, 1)]:
            sizes = [((x1 - x0) / columns, (y1 - y0) / rows) for x0, y0, x1, y1 in boxes[image].tolist()]
            found = []
            for (i, j), (k, m) in ((here, there) for here in cells for there in cells):
                x = [boxes[image, view, 0] + (c + 0.5) * sizes[view][0] for view, c in ((one, j), (other, m))]
                y = [boxes[image, view, 1] + (r + 0.5) * sizes[view][1] for view, r in ((one, i), (other, k))]
                if math.hypot(x[0] - x[1], y[0] - y[1]) / max(math.hypot(*size) for size in sizes) < threshold:
                    pair = predictions[image, one, :, i, j], keys[image, other, :, k, m]
                    found.append(F.cosine_similarity(*pair, dim=0).item())
            total += -2 * sum(found) / len(found) / count if found else 0.0
    return total / len(output.keys)


@pytest.mark.parametrize("settings", [VIT, RESNET | {"fpn_levels": 3, "fpn_width": 8}])
def test_the_loss_of_a_model_is_that_of_a_loop_over_cells(settings: dict[str, Any]) -> None:
    model = tiny(**settings)
    batch = pairs(model, 2)
    batch["boxes"][0] = torch.tensor([[0.0, 0.0, 0.4, 0.4], [1.0, 0.5, 0.6, 1.0]])  # apart, and flipped
    output = model(**batch)
    assert output.loss.item() == pytest.approx(slow_loss(output, batch["boxes"], 0.7), abs=1e-5)


def test_two_views_apart_give_no_loss_and_no_gradient() -> None:
    model = tiny()
    batch = pairs(model, 2)
    batch["boxes"] = torch.tensor([[[0.0, 0.0, 0.3, 0.3], [0.6, 0.6, 1.0, 1.0]]]).expand(2, 2, 4)
    output = model(**batch)
    output.loss.backward()
    assert output.loss.item() == 0
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)


# --- the two networks ---


@pytest.mark.parametrize("settings", [VIT, RESNET, RESNET | {"fpn_levels": 2, "fpn_width": 8}])
def test_gradients_reach_all_of_the_trained_network_and_none_of_the_momentum_network(settings: dict[str, Any]) -> None:
    model = tiny(**settings, instance_weight=1.0)
    model(**pairs(model)).loss.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert not any(p.requires_grad or p.grad is not None for p in model.target.parameters())
    assert all(p.requires_grad for name, p in model.named_parameters() if not name.startswith("target."))


def test_the_momentum_network_starts_as_a_copy_and_drops_no_paths() -> None:
    model = tiny(drop_path=0.5)
    twin = model.target.state_dict()
    assert all(torch.equal(value, twin[key]) for key, value in model.online.state_dict().items())
    pixels = torch.rand(32, 3, 24, 24)
    assert torch.equal(model.target.features(pixels)[0], model.target.features(pixels)[0])
    assert not torch.equal(model.online.features(pixels)[0], model.online.features(pixels)[0])


@pytest.mark.parametrize(("step", "kept"), [(0, 0.99), (25, 1 - 0.01 * (2 + 2**0.5) / 4), (50, 0.995), (100, 1.0)])
def test_the_momentum_rises_along_a_cosine_and_moves_parameters_only(step: int, kept: float) -> None:
    model = tiny()
    model(**pairs(model))  # batch norms have seen something
    with torch.no_grad():
        for parameter in model.online.parameters():
            parameter.add_(1.0)
    before = {key: value.clone() for key, value in model.target.state_dict().items()}
    model.before_step(step, 100)
    trained = dict(model.online.named_parameters())
    for key, value in model.target.state_dict().items():
        expected = kept * before[key] + (1 - kept) * trained[key] if key in trained else before[key]
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)


def test_the_momentum_networks_batch_norms_keep_statistics_of_their_own() -> None:
    model = tiny()
    with torch.no_grad():
        model.target.projector[0].bias.add_(3.0)
    model(**pairs(model))
    ours, theirs = model.online.projector[1], model.target.projector[1]
    assert theirs.num_batches_tracked == 2  # two views
    torch.testing.assert_close(theirs.running_mean - ours.running_mean, torch.full((12,), 3 * (1 - 0.9**2)))
    model.eval()
    model(**pairs(model))
    assert theirs.num_batches_tracked == 2


def test_the_instance_branch_adds_its_weighted_loss_of_mean_cells() -> None:
    model = tiny(instance_weight=0.5).eval()
    batch = pairs(model)
    output = model(**batch)
    views = normalize(batch["images"].flatten(0, 1), torch.float32).unflatten(0, (3, 2)).unbind(1)
    assert model.predictor is not None
    predicted, keys = [], []
    for view in views:
        (features,) = model.online.features(view)
        predicted.append(F.normalize(model.predictor(model.online.instance_projector(features)).mean((2, 3))))
        keys.append(F.normalize(model.target.instance_projector(model.target.features(view)[0]).mean((2, 3))))
    expected = -2 * ((predicted[0] * keys[1]).sum(1) + (predicted[1] * keys[0]).sum(1)).mean()
    torch.testing.assert_close(output.instance_loss, expected)
    torch.testing.assert_close(output.loss, output.pixel_loss + 0.5 * expected)
    assert tiny()(**batch).instance_loss == 0


def test_the_same_seed_draws_the_same_weights() -> None:
    for settings in (VIT, RESNET | {"fpn_levels": 1, "instance_weight": 1.0, "transform_layers": 2}):
        first, again, other = (tiny(seed, **settings).state_dict() for seed in (0, 0, 1))
        assert all(torch.equal(value, again[key]) for key, value in first.items())
        changed = {key for key, value in first.items() if not torch.equal(value, other[key])}
        assert {key for key in first if key.endswith("weight") and first[key].ndim > 1} <= changed


def test_half_precision_changes_maps_but_compares_them_in_float32() -> None:
    model = tiny().eval()
    batch = pairs(model)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**batch)
    assert output.loss.dtype == torch.float32
    assert output.predictions[0].dtype == torch.float32
    assert output.keys[0].dtype == torch.bfloat16
    assert output.loss.item() == pytest.approx(model(**batch).loss.item(), abs=0.05)


# --- backbones and what comes out ---


@pytest.mark.parametrize("name", ["resnet18", pytest.param("resnet50", marks=pytest.mark.slow)])
def test_the_folder_of_a_resnet_gives_torchvisions_features_in_both_libraries(name: str, tmp_path: Path) -> None:
    model, images = tiny(**(RESNET | {"encoder": name})), torch.rand(2, 3, 64, 96)
    network = model.online.features
    assert isinstance(network, ResNetFeatures)
    for block in (block for stage in network.stages for block in stage):
        nn.init.uniform_(getattr(block, "bn3", block.bn2).weight)  # residual branches start at zero
    with torch.no_grad():
        network(torch.randn(4, 3, 64, 64))  # moves the batch norms' statistics
        expected = network.eval()(normalize(images, torch.float32))[-1]
    model.encoder.save_pretrained(tmp_path)
    tokens = load_encoder(tmp_path)(images)
    assert (tokens.grid, tokens.classes.shape[1]) == ((2, 3), 0)
    torch.testing.assert_close(tokens.patches, expected.flatten(2).transpose(1, 2), rtol=0, atol=1e-5)
    theirs = transformers.ResNetModel.from_pretrained(tmp_path)
    with torch.no_grad():
        answer = theirs(normalize(images, torch.float32)).last_hidden_state
    torch.testing.assert_close(answer, expected, rtol=0, atol=1e-5)


def test_the_encoder_of_a_transformer_gives_the_map_as_its_patches() -> None:
    model, images = tiny(), torch.rand(2, 3, 24, 24)
    tokens = model.encoder(images)
    expected = model.online.features(normalize(images, torch.float32))[0].flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens.patches, expected.detach())
    assert tokens.grid == (3, 3)
    assert model.encoder.provenance["name"] == "pixio_vitt16"


@pytest.mark.parametrize("settings", [VIT, RESNET])
def test_the_encoder_is_a_frozen_copy(settings: dict[str, Any]) -> None:
    model = tiny(**settings)
    encoder, before = model.encoder, model.encoder.fingerprint
    with torch.no_grad():
        for parameter in model.online.parameters():
            parameter.add_(1)
    assert encoder.fingerprint == before
    assert model.encoder.fingerprint != before
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_residual_branches_start_at_zero() -> None:
    network = tiny(**RESNET).online.features
    assert isinstance(network, ResNetFeatures)
    assert all(not block.bn2.weight.any() for stage in network.stages for block in stage)


def test_a_trained_pyramid_fits_torchvisions_detectors_and_lies_beside_the_encoder(tmp_path: Path) -> None:
    model = tiny(**RESNET, fpn_levels=3)
    with torch.device("meta"):
        detector = resnet_fpn_backbone(backbone_name="resnet18", weights=None, returned_layers=[2, 3, 4])
    assert tiny().extra_weights == {}
    model.save_encoders(model.encoders, tmp_path)
    assert detector.fpn.load_state_dict(load_file(tmp_path / "encoder" / "fpn.safetensors"), assign=True)
    assert load_encoder(tmp_path / "encoder").fingerprint == model.encoder.fingerprint


def test_a_pyramid_makes_one_map_for_each_level_finest_first() -> None:
    model = tiny(**RESNET, fpn_levels=3, fpn_width=8)
    output = model(**pairs(model))
    assert [tuple(keys.shape) for keys in output.keys] == [(3, 2, 8, side, side) for side in (8, 4, 2)]


# --- pictures, baselines, errors ---


def test_the_baselines_pair_all_cells_of_an_image_and_of_different_images() -> None:
    model = tiny().eval()
    batch = pairs(model)
    batch["boxes"][1] = torch.tensor([[0.0, 0.0, 0.4, 0.4], [0.6, 0.5, 1.0, 1.0]])  # apart: 0 here, too
    places, images = model.baselines([], [batch]).values()
    output = model(**batch)
    predictions, keys = (F.normalize(maps[0].flatten(3), dim=2) for maps in (output.predictions, output.keys))
    alike = torch.einsum("avdn,bwdm->avbw", predictions, keys) / 81  # images and views of both
    assert places == pytest.approx(-2 * sum(alike[i, v, i, 1 - v].item() for i in (0, 2) for v in (0, 1)) / 3, abs=1e-5)
    assert images == pytest.approx(
        -2 * sum(alike[i, v, i - 1, 1 - v].item() for i in (0, 2) for v in (0, 1)) / 3, abs=1e-5
    )


def test_the_picture_shows_both_views_and_their_likeness() -> None:
    model = tiny().eval()
    batch = pairs(model, 4)
    picture = np.asarray(model.picture(batch))
    assert picture.shape == (3 * 24, 4 * 24, 3)
    second = batch["images"][0, 1].permute(1, 2, 0).numpy()
    assert np.mean(picture[24:48, :24] == second) > 0.8  # but for the mark


def test_settings_and_batches_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'resnet50'"):
        PixProConfig(encoder="resnet_50").build()
    with pytest.raises(SettingError, match="resnet18 has no width, stem, drop_path to set"):
        PixProConfig(encoder="resnet18", width=16, stem="conv", drop_path=0.1).build()
    with pytest.raises(SettingError, match=r"does not divide images of 100 pixels; nearest: 96"):
        PixProConfig(encoder="resnet18", image_size=100).build()
    with pytest.raises(SettingError, match="fpn_levels=1: pixio_vitt16 makes 1 map; a pyramid stands on"):
        tiny(fpn_levels=1)
    model = tiny()
    batch = pairs(model)
    with pytest.raises(ImageError, match=r"must be \[b 2 3 h w\], not \[3, 3, 24, 24\]"):
        model(images=batch["images"][:, 0], boxes=batch["boxes"])
    for side in (48, 16):
        with pytest.raises(ImageError, match=f"native 24 x 24 pixels, not {side} x {side}"):
            model(images=torch.zeros(1, 2, 3, side, side), boxes=torch.zeros(1, 2, 4))
    with pytest.raises(SettingError, match=r"here \[3, 2, 4\], not \[3, 4\]"):
        model(images=batch["images"], boxes=batch["boxes"][:, 0])


@pytest.mark.parametrize(
    "wrong",
    [
        {"gamma": 0.0},
        {"transform_layers": 3},
        {"momentum": 1.1},
        {"threshold": 0.0},
        {"instance_weight": -1.0},
        {"projection_width": 0},
        {"drop_path": 1.0},
        {"fpn_levels": -1},
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        tiny(**wrong)


def test_accumulation_is_part_of_a_runs_identity_where_batch_norms_see_it() -> None:
    told: dict[str, Any] = {"steps": 1, "parallel": ParallelConfig(accumulate=2)}
    assert RunConfig(**told, objective=PixProConfig()).identity()["parallel.accumulate"] == 2
    assert "parallel.accumulate" not in RunConfig(**told, objective=PixioConfig()).identity()
