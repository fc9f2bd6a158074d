import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from PIL import Image
from torch import Tensor

from pixio_pretrain import probe
from pixio_pretrain.components import component_colors
from pixio_pretrain.data import Frames, open_frames, split_episodes
from pixio_pretrain.probe.depth import depth_errors
from pixio_pretrain.probe.palette import Palette
from pixio_pretrain.probe.resampling import interval, resampled_means
from pixio_pretrain.probe.ridge import RIDGES, fit, fit_best
from pixio_pretrain.probe.table import POSITIONS
from pixio_robot import Tokens, create_encoder
from pixio_robot.errors import DataError, SettingError

EPISODES, SIDE, CELLS = 60, 32, 8


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks, two cameras: a bright square ("object") before a ramp; its cells are nearer. The hand is dark."""
    random = np.random.default_rng(0)
    rows = 2 * EPISODES
    frames = np.full((rows, SIDE, SIDE, 3), 100, np.uint8)
    depth = np.full((rows, CELLS, CELLS), 2.0, np.float32)
    depth[:, 0] = 100  # sky
    hand, thing = np.zeros((2, rows, 3), np.float32)
    for row in range(rows):
        for position, colour in ((hand, 20), (thing, 230)):
            u, v = random.integers(0, CELLS, size=2)
            frames[row, 4 * v : 4 * v + 4, 4 * u : 4 * u + 4] = colour
            position[row] = u / CELLS, v / CELLS, 1.0
            if v:
                depth[row, v, u] = 1.0
    cam2world = np.tile(np.eye(4, dtype=np.float32), (rows, 1, 1))
    cam2world[:, :3, 3] = random.normal(size=(rows, 3))  # the cameras move; what they see stays before them
    cam2world[:, :3, :3] = [[0, 0, 1], [1, 0, 0], [0, 1, 0]]
    world = [np.einsum("nij,nj->ni", cam2world[:, :3, :3], p) + cam2world[:, :3, 3] for p in (hand, thing)]
    folder = tmp_path_factory.mktemp("probe") / "answered.zarr"
    group = zarr.create_group(folder, attributes={"tasks": ["push", "pull"], "cameras": ["left", "right"]})
    episode = np.repeat(np.arange(EPISODES), 2)
    arrays: dict[str, Any] = {"frames": frames, "depth": depth, "cam2world": cam2world}
    arrays |= {"hand": world[0].astype(np.float32), "object": world[1].astype(np.float32)}
    arrays |= {"episode": episode, "task": episode % 2, "camera": np.tile([0, 1], EPISODES)}
    for name, array in arrays.items():
        group.create_array(name, data=array)
    group.attrs["complete"] = True
    return folder


Trial = tuple[Frames, probe.Truth, Any, Any]


@pytest.fixture(scope="module")
def trial(answered: Path) -> Trial:
    frames = open_frames(answered)
    return frames, probe.Truth.read(answered), *split_episodes(frames.episodes, 0.3)


def test_colours_are_the_directions_in_which_patches_differ() -> None:
    random = torch.Generator().manual_seed(0)
    hidden = torch.rand(4, 9, 3, generator=random)
    hidden = hidden * torch.tensor([9.0, 3.0, 1.0])  # so that the components' order is known
    colors = component_colors(hidden @ torch.linalg.qr(torch.randn(16, 3, generator=random))[0].T)
    assert colors.shape == (4, 9, 3)
    assert colors.min() == 0
    assert colors.max() == 1
    for number in range(3):
        both = torch.stack([colors[..., number].flatten(), hidden[..., number].flatten()])
        assert torch.corrcoef(both)[0, 1].abs() > 0.9
    torch.testing.assert_close(component_colors(torch.ones(2, 4, 5)), torch.full((2, 4, 3), 0.5))


def values(found: probe.GeometryProbe, target: str, metric: str, features: str = "grid") -> float:
    """The mean over everything that was measured of this kind."""
    found_values = [
        m.values
        for m in found.measurements
        if (m.target, m.metric) == (target, metric) and m.features in (features, "each patch")
    ]
    assert found_values
    return float(np.mean(np.concatenate(found_values)))


def record(arm: str, seed: int, numbers: list[float], **changes: Any) -> probe.ProbeRecord:
    facts: dict[str, Any] = {"camera": "left", "task": "push", "target": "hand", "features": "grid", "ridge": 1.0}
    facts |= {"metric": "squared distance", "episodes": list(range(len(numbers))), "values": numbers}
    store = changes.pop("store", "a")
    measurement = probe.Measurement(**(facts | changes))
    return probe.ProbeRecord(arm=arm, seed=seed, encoder=None, training={}, store=store, measurement=measurement)


def test_positions_are_given_as_the_camera_has_them_before_it(answered: Path) -> None:
    truth = probe.Truth.read(answered)
    rows = np.arange(2 * EPISODES)
    for name in ("hand", "object"):
        np.testing.assert_allclose(truth.position(name, rows)[:, 2], 1.0, atol=1e-5)
        assert truth.position(name, rows)[:, :2].min() > -1e-5
    assert truth.world["hand"][:, 2].std() > 0.5


def test_a_store_without_answers_says_how_to_get_them(store: Path) -> None:
    with pytest.raises(DataError, match=r"lacks the exact answers cam2world, camera, depth.*--truth"):
        probe.Truth.read(store)


@pytest.mark.parametrize("shape", [(50, 8), (20, 40)])
def test_both_forms_of_ridge_regression_solve_the_same_problem(shape: tuple[int, int]) -> None:
    x, y = torch.randn(*shape), torch.randn(shape[0], 2)
    (found,) = fit(x, y, [3.0])
    z = ((x - x.mean(0)) / (x.std(0) + 1e-6)).double()
    expected = torch.linalg.lstsq(
        torch.cat([z, 3.0**0.5 * torch.eye(shape[1], dtype=torch.float64)]),
        torch.cat([(y - y.mean(0)).double(), torch.zeros(shape[1], 2, dtype=torch.float64)]),
    ).solution
    torch.testing.assert_close(found.weights.double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found(x).mean(0), y.mean(0), rtol=0, atol=1e-4)


def test_the_penalty_is_large_for_noise_and_small_for_answers() -> None:
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(200, 30, generator=generator), torch.randn(200, 1, generator=generator)
    assert fit_best(x, noise, np.arange(200)).ridge >= 1e3
    assert fit_best(x, x[:, :1], np.arange(200)).ridge == RIDGES[0]


def test_depth_is_measured_frame_by_frame_and_without_the_sky() -> None:
    true = torch.tensor([[[1.0, 2.0], [4.0, 100.0]], [[100.0, 100.0], [100.0, 100.0]]])
    predicted = torch.tensor([[[1.0, 1.5], [5.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]])
    errors = depth_errors(predicted, true)
    assert errors["rmse"][0] == pytest.approx(((0 + 0.25 + 1) / 3) ** 0.5)
    assert errors["abs_rel"][0] == pytest.approx((0 + 0.25 + 0.25) / 3)
    assert errors["delta1"][0] == pytest.approx(1 / 3)  # a factor of 4/3, and one of exactly 1.25
    assert all(torch.isnan(error[1]) for error in errors.values())


def test_who_sees_the_answers_reads_them_and_who_sees_nothing_answers_the_mean(trial: Trial) -> None:
    frames, truth, train, held_out = trial

    def see(images: Tensor) -> Tokens:
        cells = images.float().mean(dim=1).unflatten(1, (CELLS, 4)).unflatten(3, (CELLS, 4)).mean(dim=(2, 4))
        flags = torch.stack([cells < 60, cells > 200], dim=-1).float()  # b v u 2
        v, u = torch.meshgrid(torch.arange(CELLS), torch.arange(CELLS), indexing="ij")
        placed = [flags, flags * u[..., None], flags * v[..., None]]  # their mean says where
        return Tokens(flags[:, :0, 0], torch.cat(placed, dim=-1).flatten(1, 2), (CELLS, CELLS))

    oracle = probe.probe_geometry(probe.Look(see=see, side=SIDE, grid=CELLS), *trial)
    pixels = probe.probe_geometry(probe.PIXELS, *trial)
    blind = probe.probe_geometry(probe.NOTHING, *trial)
    for target in ("hand", "object"):
        assert values(oracle, target, "distance", "patches") < 0.3 * values(blind, target, "distance")
        assert values(oracle, target, "distance", "keypoints") < 0.3 * values(blind, target, "distance")
    assert values(oracle, "depth", "rmse") < 0.5 * values(blind, "depth", "rmse")
    assert values(oracle, "depth", "delta1") > values(blind, "depth", "delta1") > 0.9
    assert values(oracle, "depth", "abs_rel") < values(pixels, "depth", "abs_rel") < values(blind, "depth", "abs_rel")

    here = truth.camera == 0
    assert frames.tasks is not None
    mine = [rows[here[rows] & (frames.tasks[rows] == 0)] for rows in (train, held_out)]
    mean = truth.position("object", mine[0]).mean(axis=0)
    expected = np.linalg.norm(truth.position("object", mine[1]) - mean, axis=1)
    (found,) = [m for m in blind.measurements if (m.camera, m.task, m.target, m.features, m.metric) == (
        "left", "push", "object", "grid", "distance")]  # fmt: skip
    np.testing.assert_allclose(found.values, expected, atol=1e-5)
    assert found.episodes == frames.episodes[mine[1]].tolist()
    np.testing.assert_allclose(blind.predictions["left/push/object"], np.tile(mean, (len(mine[1]), 1)), atol=1e-5)
    assert oracle.predictions["left/depth"].shape == (6, CELLS, CELLS)
    assert oracle.predictions["left/features"].shape == (6, CELLS, CELLS, 3)


def test_the_exact_place_tells_all_but_how_far_along_the_ray(trial: Trial) -> None:
    frames, truth, train, held_out = trial
    found = probe.probe_told(probe.exact_places, frames, truth, train, held_out)
    assert {one.features for one in found.measurements} == {"grid", "fine grid"}
    assert {one.target for one in found.measurements} == {"hand", "object"}
    assert max(max(one.values) for one in found.measurements) < 1e-3  # all stand one metre before the camera

    eye, far = truth.cam2world[:, :3, 3], np.random.default_rng(0).uniform(1, 3, size=(len(frames), 1))
    world = {name: (eye + far * (place - eye)).astype(np.float32) for name, place in truth.world.items()}
    deep = replace(truth, world=world)
    rows = np.arange(len(frames))
    np.testing.assert_allclose(deep.place("object", rows), truth.place("object", rows), atol=1e-4)
    found = probe.probe_told(probe.exact_places, frames, deep, train, held_out)
    off = np.mean([one.values for one in found.measurements if one.metric == "distance" and one.task == "push"])
    assert 0.3 < off < 0.9  # metres, of a distance that is anywhere from 1 to 3 and rather 2


def test_colours_are_found_where_they_are_and_count_what_there_is_of_them(trial: Trial) -> None:
    frames, truth, train, held_out = trial
    found = probe.probe_told(probe.color_places, frames, truth, train, held_out)
    off = [one.values for one in found.measurements if one.metric == "distance" and one.features == "grid"]
    nothing = probe.probe_geometry(probe.NOTHING, frames, truth, train, held_out).measurements
    blind = [one.values for one in nothing if one.metric == "distance" and one.features == "grid"]
    assert np.mean(np.concatenate(off)) < 0.15 * np.mean(np.concatenate(blind))  # now and then, one hides the other

    white = np.full((3, 64, 3), 255, np.uint8)
    alike = Palette.learn(white, 2)
    assert torch.equal(alike(white), torch.zeros(3, 6))  # nothing comes or goes
    assert (alike(0 * white)[0, 4:] > 0).any()


def test_a_camera_that_holds_the_hand_is_not_asked_for_it(trial: Trial) -> None:
    frames, truth, *rows = trial
    held = truth.world["hand"].copy()
    right = truth.camera == 1
    held[right] = truth.cam2world[right, :3, 3]
    found = probe.probe_geometry(probe.NOTHING, frames, replace(truth, world=truth.world | {"hand": held}), *rows)
    assert {(m.camera, m.target) for m in found.measurements if m.target != "depth"} == {
        ("left", "hand"), ("left", "object"), ("right", "object"),
    }  # fmt: skip


def test_shared_episodes_and_foreign_answers_are_refused(trial: Trial) -> None:
    frames, truth, train, held_out = trial
    with pytest.raises(DataError, match="Episodes are shared"):
        probe.probe_geometry(probe.NOTHING, frames, truth, train, np.append(held_out, train[0]))
    with pytest.raises(DataError, match=r"120 frames, .* answers to 3"):
        probe.probe_geometry(probe.NOTHING, frames, replace(truth, camera=truth.camera[:3]), train, held_out)


def test_an_encoder_without_class_tokens_is_read_from_its_patches(trial: Trial) -> None:
    class Bare:
        spec = create_encoder("pixio_vitt16", image_size=SIDE, depth=1).spec

        def __call__(self, images: Tensor) -> Tokens:
            return Tokens(torch.zeros(len(images), 0, 3), torch.ones(len(images), 4, 3), (2, 2))

    features = probe.class_features(Bare(), trial[0], np.arange(5))  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(features, torch.ones(5, 3))


def test_resampling_gives_the_textbooks_interval_for_one_seed() -> None:
    numbers = np.random.default_rng(0).normal(5, 2, size=(1, 400))
    mean, low, high = interval(resampled_means(numbers, arm="a", stratum="push"))
    error = numbers.std() / 20
    assert mean == pytest.approx(numbers.mean())
    assert low == pytest.approx(mean - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(mean + 1.96 * error, abs=0.15 * error)
    with pytest.raises(SettingError, match=r"not \[1, 0\]"):
        resampled_means(np.zeros((1, 0)), arm="a", stratum="push")


def test_seeds_widen_the_interval_and_pairing_narrows_that_of_a_difference() -> None:
    scenes = np.random.default_rng(0).normal(5, 2, size=200)

    def width(means: np.ndarray) -> float:
        _, low, high = interval(means)
        return high - low

    first = resampled_means(scenes[None], arm="a", stratum="push")
    second = resampled_means(scenes[None] + 1, arm="b", stratum="push")
    assert width(second - first) < 1e-9 < width(first)
    assert (second - first)[0] == pytest.approx(1)
    luck = resampled_means(scenes + np.array([[-2.0], [0.0], [2.0]]), arm="a", stratum="push")
    assert width(luck) > 2 * width(first)


def test_r2_is_measured_against_the_training_mean() -> None:
    comparison = probe.Comparison([record("pixio", 0, [1.0, 3.0]), record(probe.BASELINE, 0, [8.0, 8.0])])
    (column,) = [column for column in POSITIONS if column.head == "hand, R²"]
    means = comparison.means("pixio", "left", column, "grid")
    assert means is not None
    assert means[0] == pytest.approx(0.75)
    with pytest.raises(DataError, match="R2 is measured against the arm 'training mean'"):
        probe.Comparison([record("pixio", 0, [1.0, 3.0])]).means("pixio", "left", column, "grid")


@pytest.mark.parametrize("change", [{"store": "b"}, {"episodes": [0, 2]}])
def test_arms_of_different_frames_are_not_compared(change: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="'pixio' and 'mae' were measured on different frames"):
        probe.Comparison([record("pixio", 0, [1.0, 3.0]), record("mae", 0, [1.0, 3.0], **change)])


def test_an_arm_that_lacks_a_seed_is_refused() -> None:
    records = [record("pixio", 1, [1.0, 3.0]), record(probe.BASELINE, 0, [8.0, 8.0])]
    with pytest.raises(DataError, match=r"'pixio' has 2 encoders, but .* was measured for 1"):
        probe.Comparison(records).means("pixio", "left", POSITIONS[1], "grid")


def test_the_tables_tell_every_arm_and_every_seed(trial: Trial) -> None:
    records = []
    looks: list[tuple[str, int, probe.Look]] = [("pixio", 0, probe.PIXELS), ("pixio", 1, replace(probe.PIXELS, grid=2))]
    for arm, seed, look in [*looks, (probe.BASELINE, 0, probe.NOTHING)]:
        for measurement in probe.probe_geometry(look, *trial).measurements:
            facts: dict[str, Any] = {"arm": arm, "seed": seed, "encoder": None, "training": {}, "store": "a"}
            records.append(probe.ProbeRecord(**facts, measurement=measurement))
    text = probe.to_markdown(probe.Comparison(records))
    assert text.count("| pixio − training mean | ") == 2  # two cameras
    assert text.count("| pixio, 1 | ") == 2
    assert "| training mean | " in text
    assert "0.000 (0.000 to 0.000)" in text  # R2 of the mean, against itself
    assert "n = 18 held-out episodes" in text
    assert "nan" not in text


def test_records_come_back_as_they_were_and_a_broken_line_is_named(tmp_path: Path) -> None:
    records = [record("pixio", 0, [1.0, 3.0]), record("mae", 1, [0.5, 0.25])]
    probe.write_records(tmp_path / "a.jsonl", records)
    assert probe.read_records(tmp_path / "a.jsonl") == records
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write(json.dumps({"arm": "pixio"}) + "\n")
    with pytest.raises(DataError, match="line 3 is no record"):
        probe.read_records(tmp_path / "a.jsonl")


def test_a_task_is_told_by_its_colour_and_not_without_labels(store: Path, tmp_path: Path) -> None:
    frames = open_frames(store)
    train, held_out = split_episodes(frames.episodes, 0.25)
    encoder = create_encoder("pixio_vitt16", seed=0, width=48, depth=2, heads=2, patch_size=8, image_size=40)
    result = probe.probe_task(encoder, frames, train, held_out)
    assert (result.frames, result.episodes, result.classes) == (12, 3, 3)
    assert result.right == 12

    for number in range(2):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    with pytest.raises(DataError, match="do not say which task"):
        probe.probe_task(encoder, open_frames(tmp_path), np.array([0]), np.array([1]))
