"""Batches gathered from memory: the same as LeRobot's data loader gives, item by item."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.datasets.sampler import EpisodeAwareSampler
from torch.utils.data import default_collate

from lerobot_policy_pixio import PixioACTConfig, PixioDiffusionConfig
from lerobot_policy_pixio.augmentation import ImageAugmentation
from lerobot_policy_pixio.decoded import DecodedFrames, decode_frames
from lerobot_policy_pixio.demonstrations import Demonstrations
from lerobot_policy_pixio.frames import DatasetFrames
from lerobot_policy_pixio.training import Trainer, make_policy, make_processors
from pixio_robot import Encoder, FeatureCache, build_cache
from pixio_robot.errors import DataError, SettingError

ALL = torch.arange(34)  # frames of the data set
KINDS: dict[str, dict[str, Any]] = {
    "act": {"kind": "pixio_act"},
    "act, told its task": {"kind": "pixio_act", "task_conditioning": "index"},
    "diffusion": {"kind": "pixio_diffusion", "n_obs_steps": 1},
    "diffusion, two steps": {"kind": "pixio_diffusion", "n_obs_steps": 2, "task_conditioning": "index"},
}


@pytest.fixture
def demonstrate(
    make_config: Callable[..., PixioACTConfig],
    make_diffusion_config: Callable[..., PixioDiffusionConfig],
    dataset_root: Path,
    cache: Path,
    encoder: Encoder,
) -> Callable[..., Any]:
    """Make a policy, its preprocessor and its demonstrations."""

    def make(
        kind: str = "pixio_act", *, features: Path = cache, memory_gb: float | None = None, **settings: Any
    ) -> Any:
        config = make_config(**settings) if kind == "pixio_act" else make_diffusion_config(**settings)
        frames = DatasetFrames(dataset_root)
        policy = make_policy(config, frames, seed=0, encoder=encoder)
        preprocessor, _ = make_processors(policy, frames)
        return policy, preprocessor, Demonstrations(frames, policy, preprocessor, features, memory_gb=memory_gb)

    return make


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_batches_are_those_of_lerobots_loader(
    demonstrate: Callable[..., Any], dataset_root: Path, settings: dict[str, Any]
) -> None:
    policy, preprocessor, demonstrations = demonstrate(**settings)
    windows = resolve_delta_timestamps(policy.config, DatasetFrames(dataset_root).dataset.meta)
    dataset = LeRobotDataset("local/walks", root=dataset_root, delta_timestamps=windows, video_backend="pyav")
    theirs = preprocessor(default_collate([dataset[index] for index in range(len(dataset))]))
    ours = demonstrations.gather(ALL)
    for key in ("observation.state", "action", "action_is_pad"):
        torch.testing.assert_close(ours[key], theirs[key])
    assert ours["action_is_pad"][:, 0].any() == (policy.config.action_delta_indices[0] < 0)
    assert ours["action_is_pad"][:, -1].any()
    for camera in policy.config.image_features:
        live = policy.eyes.encode([theirs[camera]])[0].pool(2)
        shape = ours["observation.state"].shape[:-1]  # the time axis, where LeRobot gives one
        assert ours[camera].patches.shape[:-2] == ours[camera].classes.shape[:-2] == shape
        patches = live.patches.view_as(ours[camera].patches)  # LeRobot drops the time axis of a single video frame
        torch.testing.assert_close(ours[camera].patches, patches, atol=5e-3, rtol=5e-3)
    told = settings.get("task_conditioning", "none") != "none"
    assert ours.get("task") == (theirs["task"] if told else None)
    loss, _ = policy(ours)
    assert torch.isfinite(loss)


@pytest.mark.parametrize("dropped", [0, 3, 9])
def test_rows_are_those_that_lerobots_sampler_draws(demonstrate: Callable[..., Any], dropped: int) -> None:
    _, _, demonstrations = demonstrate(kind="pixio_diffusion", drop_n_last_frames=dropped)
    sampler = EpisodeAwareSampler([0, 9, 23], [9, 23, 34], drop_n_last_frames=dropped)
    assert demonstrations.rows.tolist() == sampler.indices
    assert len(demonstrations) == len(sampler)


def test_a_setting_that_leaves_no_frame_is_refused(demonstrate: Callable[..., Any]) -> None:
    with pytest.raises(DataError, match=r"drop_n_last_frames=14 leaves no frame"):
        demonstrate(kind="pixio_diffusion", drop_n_last_frames=14)


class Darken:
    """An augmentation."""

    description = {"name": "darken"}  # noqa: RUF012

    def __call__(self, frames: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return (frames * torch.rand(len(frames), 1, 1, 1, generator=generator)).to(torch.uint8)


@pytest.fixture(scope="session")
def varied(dataset_root: Path, encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("varied") / "walks.zarr"
    build_cache(path, encoder, DatasetFrames(dataset_root), grid=2, chunk=16, variants=2, augment=Darken())
    return path


def equal(ours: dict[str, Any], theirs: dict[str, Any], camera: str) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours[camera][:2], theirs[camera][:2], strict=True))


@pytest.mark.parametrize("steps", [1, 2])
def test_tokens_from_disk_are_those_from_memory(demonstrate: Callable[..., Any], varied: Path, steps: int) -> None:
    settings = {"kind": "pixio_diffusion", "n_obs_steps": steps, "features": varied}
    held, mapped = demonstrate(**settings)[2], demonstrate(**settings, memory_gb=0)[2]
    variants = ALL % 3
    for chosen in (None, variants, torch.full_like(variants, 2)):
        for camera in FeatureCache.open(varied).cameras:
            assert equal(held.gather(ALL, chosen), mapped.gather(ALL, chosen), camera)


def test_each_sample_shows_its_variant_of_the_cache(demonstrate: Callable[..., Any], varied: Path) -> None:
    demonstrations, cache = demonstrate(features=varied)[2], FeatureCache.open(varied)
    camera = cache.cameras[0]
    rows, variants = torch.tensor([3, 3, 3, 20]), torch.tensor([0, 1, 2, 1])
    patches = demonstrations.gather(rows, variants)[camera].patches
    for patch, row, variant in zip(patches, rows.tolist(), variants.tolist(), strict=True):
        assert torch.equal(patch, cache.read(camera, [row], variant).patches[0].float())
    assert not torch.equal(patches[0], patches[1])
    assert torch.equal(demonstrations.gather(rows)[camera].patches[1], patches[0])


def test_variants_are_drawn_by_seed_and_step(demonstrate: Callable[..., Any], varied: Path) -> None:
    policy, _, demonstrations = demonstrate(features=varied)
    asked, gather = [], demonstrations.gather
    demonstrations.gather = lambda rows, variants: (asked.append(variants), gather(rows, variants))[1]
    for _ in range(2):
        trainer = Trainer(policy, demonstrations, steps=9, batch_size=16, seed=4)
        for step in (1, 2, 3):
            trainer.step(step)
    drawn = np.array([variants.tolist() for variants in asked])
    assert (drawn[:3] == drawn[3:]).all()
    assert (drawn[0] != drawn[1]).any()
    assert set(drawn.flatten()) == {0, 1, 2}


def test_an_encoder_in_training_cannot_be_cached(demonstrate: Callable[..., Any]) -> None:
    with pytest.raises(SettingError, match=r"train_encoder='last_blocks'.*lerobot-train.*'frozen'"):
        demonstrate(train_encoder="last_blocks", train_blocks=1)


def test_a_data_set_that_was_recorded_anew_is_decoded_anew(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    first, second = (
        DatasetFrames(make_dataset(tmp_path / f"walks {seed}", seed=seed, dtype="image")) for seed in (0, 1)
    )
    before, after = (decode_frames(frames, tmp_path / "frames") for frames in (first, second))
    for frames, decoded in ((first, before), (second, after)):
        for camera in frames.cameras:
            assert (decoded.images[camera][0] == frames.read(camera, 0, len(frames)).numpy()).all()
    made = sorted((tmp_path / "frames").glob("*.npy"))
    assert len(made) == 4
    again = decode_frames(first, tmp_path / "frames")
    assert sorted((tmp_path / "frames").glob("*.npy")) == made
    assert all((again.images[camera][0] == before.images[camera][0]).all() for camera in before.images)


def test_pixels_have_the_variants_that_a_cache_shows(
    make_config: Callable[..., PixioACTConfig], dataset_root: Path, tmp_path: Path
) -> None:
    frames = DatasetFrames(dataset_root)
    augment, rows = ImageAugmentation(), torch.tensor([3, 20, 33, 4])
    pixels = decode_frames(frames, tmp_path / "frames", variants=2, augment=augment)
    policy = make_policy(make_config(), frames, seed=0)
    live = Demonstrations(frames, policy, make_processors(policy, frames)[0], pixels=pixels)
    assert live.variants == 2
    drawn = torch.tensor([0, 1, 2, 2])
    seen = live.gather(rows, drawn)
    encoder = policy.eyes.encoder
    cache = build_cache(tmp_path / "cache", encoder, frames, variants=2, augment=augment)
    for camera in frames.cameras:
        assert (seen[camera][:1] == live.gather(rows)[camera][:1]).all()
        for row, variant, picture in zip(rows, drawn, seen[camera], strict=True):
            stored = cache.read(camera, row[None], int(variant)).patches.float()
            torch.testing.assert_close(encoder(picture[None]).patches, stored, rtol=1e-2, atol=1e-2)
            clean = cache.read(camera, row[None]).patches.float()
            assert ((stored - clean).abs().max() > 0.05) == bool(variant)
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "frames").glob("*.npy")}
    assert len(made) == 3 * len(frames.cameras)
    fewer = decode_frames(frames, tmp_path / "frames", variants=1, augment=augment)
    assert fewer.variants == 1
    assert fewer.augmentation == augment.description
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "frames").glob("*.npy")} == made


def test_pixels_of_another_data_set_are_refused(make_config: Callable[..., PixioACTConfig], dataset_root: Path) -> None:
    frames = DatasetFrames(dataset_root)
    policy = make_policy(make_config(), frames, seed=0)
    preprocessor, _ = make_processors(policy, frames)
    top, wrist = frames.cameras
    few = {top: [np.zeros((34, 3, 64, 64), np.uint8)], wrist: [np.zeros((33, 3, 64, 64), np.uint8)]}
    with pytest.raises(DataError, match=rf"has 34 frames, and pixels hold 33 of '{wrist}'"):
        Demonstrations(frames, policy, preprocessor, pixels=DecodedFrames(images=few))
    with pytest.raises(DataError, match=rf"pixels hold 0 of '{wrist}'"):
        Demonstrations(frames, policy, preprocessor, pixels=DecodedFrames(images={top: few[top]}))
