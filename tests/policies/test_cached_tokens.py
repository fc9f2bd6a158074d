"""Stock LeRobot on a feature cache: its own data loader and preprocessor, with cached tokens in the images' place."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.factory import make_policy, make_pre_post_processors
from lerobot.scripts import lerobot_train
from torch.utils.data import default_collate

from lerobot_policy_pixio.cached_tokens import CachedTokensStep
from lerobot_policy_pixio.dataset_tables import export_tables, policy_inputs
from lerobot_policy_pixio.frames import DECODER, DatasetFrames
from pixio_robot import Encoder, FeatureCache, build_cache
from pixio_robot.errors import CacheError, SettingError
from pixio_robot.tokens import Tokens

CAMERAS = ("observation.images.top", "observation.images.wrist")
ROWS = [0, 1, 8, 9, 22, 23, 33]  # starts and ends of episodes among them


class Loop:
    """What ``lerobot-train`` makes of a policy's settings and a data set."""

    def __init__(self, config: Any, root: Path) -> None:
        self.dataset = LeRobotDataset("local/walks", root=root, video_backend=DECODER)
        torch.manual_seed(0)
        self.policy: Any = make_policy(config, ds_meta=self.dataset.meta)
        self.dataset = LeRobotDataset(
            "local/walks",
            root=root,
            delta_timestamps=resolve_delta_timestamps(config, self.dataset.meta),
            video_backend=DECODER,
        )
        self.preprocessor, self.postprocessor = make_pre_post_processors(config, dataset_stats=self.dataset.meta.stats)

    def raw(self, rows: list[int]) -> dict[str, Any]:
        return default_collate([self.dataset[row] for row in rows])

    def batch(self, rows: list[int]) -> dict[str, Any]:
        return self.preprocessor(self.raw(rows))


@pytest.fixture
def configure(make_config: Callable[..., Any], make_diffusion_config: Callable[..., Any], cache: Path) -> Any:
    def configure(kind: str, **changes: Any) -> Any:
        make = make_config if kind == "pixio_act" else make_diffusion_config
        return make(**({"cache": str(cache)} | changes))

    return configure


@pytest.fixture
def diffusion_steps(kind: str) -> dict[str, int]:
    return {} if kind == "pixio_act" else {"n_obs_steps": 3, "n_action_steps": 3}


def test_tokens_are_those_of_the_images_that_the_loader_gives(
    kind: str, diffusion_steps: dict[str, int], configure: Any, dataset_root: Path, encoder: Encoder
) -> None:
    loop = Loop(configure(kind, **diffusion_steps), dataset_root)
    raw, batch = loop.raw(ROWS), loop.batch(ROWS)
    for camera in CAMERAS:
        tokens, images = batch[camera], raw[camera]
        assert isinstance(tokens, Tokens)
        live = encoder(images.flatten(0, -4)).pool(2)
        assert tokens.patches.shape == (*images.shape[:-3], 4, 32)
        for cached, seen in [(tokens.classes, live.classes), (tokens.patches, live.patches)]:
            torch.testing.assert_close(cached.flatten(0, -3), seen, atol=4e-3, rtol=4e-3)


def test_the_loss_is_that_of_live_images(kind: str, configure: Any, dataset_root: Path) -> None:
    cached = Loop(configure(kind), dataset_root)
    live = Loop(configure(kind, cache=None), dataset_root)
    live.policy.load_state_dict(cached.policy.state_dict(), strict=False)

    def loss(loop: Loop, rows: list[int]) -> float:
        batch = loop.batch(rows)
        torch.manual_seed(0)
        return loop.policy.train().forward(batch)[0].item()

    assert loss(cached, ROWS) == pytest.approx(loss(live, ROWS), rel=1e-3)


def test_an_observation_without_an_index_is_left_alone(configure: Any, dataset_root: Path) -> None:
    loop = Loop(configure("pixio_act"), dataset_root)
    step = loop.preprocessor.steps[0]
    assert isinstance(step, CachedTokensStep)
    step.cache = "/nowhere"
    seen = {camera: torch.rand(1, 3, 64, 64) for camera in CAMERAS} | {"observation.state": torch.rand(1, 3)}
    batch = loop.preprocessor(seen)
    assert all(torch.equal(batch[camera], seen[camera]) for camera in CAMERAS)
    assert loop.policy.select_action(batch).shape == (1, 3)


def test_images_stay_where_no_gradient_is_taken(configure: Any, dataset_root: Path) -> None:
    loop = Loop(configure("pixio_act"), dataset_root)
    with torch.no_grad():
        batch = loop.batch(ROWS)
    assert all(isinstance(batch[camera], torch.Tensor) for camera in CAMERAS)


def test_augmentation_that_would_do_nothing_is_told_once(
    configure: Any, dataset_root: Path, encoder: Encoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """LeRobot's loader augments the images that tokens take the place of; a batch does not say whether it did."""

    def told(loop: Loop) -> int:
        caplog.clear()
        for _ in range(2):
            loop.batch(ROWS)
        return sum("image_transforms, if enabled, do nothing" in record.getMessage() for record in caplog.records)

    assert told(Loop(configure("pixio_act"), dataset_root)) == 1
    build_cache(tmp_path / "cache", encoder, DatasetFrames(dataset_root), grid=2, variants=1, augment=Darker())
    assert told(Loop(configure("pixio_act", cache=str(tmp_path / "cache")), dataset_root)) == 0


def test_a_checkpoint_needs_no_cache_to_act_and_says_so_if_it_trains(
    configure: Any, cache: Path, dataset_root: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(cache, tmp_path / "cache.zarr")
    loop = Loop(configure("pixio_act", cache=str(moved)), dataset_root)
    loop.policy.save_pretrained(tmp_path / "policy")
    loop.preprocessor.save_pretrained(tmp_path / "policy")
    loop.postprocessor.save_pretrained(tmp_path / "policy")
    shutil.rmtree(moved)
    policy: Any = type(loop.policy).from_pretrained(tmp_path / "policy")
    preprocessor, _ = make_pre_post_processors(policy.config, str(tmp_path / "policy"))
    seen = {camera: torch.rand(1, 3, 64, 64) for camera in CAMERAS} | {"observation.state": torch.rand(1, 3)}
    assert policy.select_action(preprocessor(seen)).shape == (1, 3)
    with pytest.raises(CacheError, match=r"no feature cache at.*change the step 'CachedTokensStep'"):
        preprocessor(loop.raw(ROWS))


def test_a_cache_that_the_pipelines_of_a_checkpoint_do_not_read_is_told(
    kind: str, configure: Any, cache: Path, dataset_root: Path
) -> None:
    """As ``lerobot-train --policy.path=CHECKPOINT --policy.cache=CACHE`` would have it."""
    loop = Loop(configure(kind, cache=None), dataset_root)
    batch = loop.batch(ROWS)
    loop.policy.config.cache = str(cache)
    without = {key: value for key, value in batch.items() if key not in CAMERAS}
    for given in (batch, without):
        with pytest.raises(
            SettingError, match=rf"pixio-train --policy\.path=\.\.\. --cache={cache}`, which has no --peft"
        ):
            loop.policy.train()(dict(given))
    with torch.no_grad():
        assert loop.policy(dict(batch))[0].isfinite()


def test_batches_of_an_edited_data_set_are_refused(
    kind: str, configure: Any, make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    edited = Loop(configure(kind), make_dataset(tmp_path / "edited", seed=1))  # as many frames, other motions
    with pytest.raises(CacheError, match="data set was edited"):
        edited.batch(ROWS)


def test_a_cache_that_does_not_fit_is_refused_at_once(
    configure: Any, dataset_root: Path, cache: Path, encoder: Encoder, tmp_path: Path
) -> None:
    top = DatasetFrames(dataset_root, CAMERAS[:1])
    build_cache(tmp_path / "top", encoder, top, grid=2)
    build_cache(tmp_path / "small", encoder, DatasetFrames(dataset_root), size=(32, 32))
    for changes, told in [
        ({"cache": str(tmp_path / "none")}, "no feature cache at"),
        ({"cache": str(tmp_path / "top")}, r"no camera 'observation.images.wrist'; it has observation.images.top"),
        ({"cache": str(tmp_path / "small")}, r"at 32 x 32 pixels, and the policy sees 64 x 64"),
        ({"grid": 1}, r"averaged to 2 x 2; pooling by 'average' to 1 x 1 needs.*--grid 0 or 1"),
        ({"patches": "merge"}, r"averaged to 2 x 2; pooling by 'merge' to 2 x 2 needs.*--grid 0 or 4"),
        ({"patches": "attention"}, r"averaged to 2 x 2; pooling by 'attention'"),
        ({"encoder": "shipped:pixio_vitt16", "image_size": 64}, r"was built by the encoder .* and the policy sees"),
    ]:
        with pytest.raises(CacheError, match=told):
            Loop(configure("pixio_act", **changes), dataset_root)


class Darker:
    description = {"darker": True}  # noqa: RUF012

    def __call__(self, frames: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return (frames * torch.rand((), generator=generator)).to(torch.uint8)


def test_variants_are_drawn_by_pytorchs_generator(
    configure: Any, dataset_root: Path, encoder: Encoder, tmp_path: Path
) -> None:
    path = tmp_path / "cache"
    cache = build_cache(path, encoder, DatasetFrames(dataset_root), grid=2, variants=2, augment=Darker())
    loop = Loop(configure("pixio_diffusion", cache=str(path)), dataset_root)

    def draw(seed: int) -> list[Tokens]:
        torch.manual_seed(seed)
        batch = loop.batch(ROWS * 4)
        return [batch[camera] for camera in CAMERAS]

    first, again, other = draw(0), draw(0), draw(1)
    assert torch.equal(first[0].patches, again[0].patches)
    assert not torch.equal(first[0].patches, other[0].patches)
    for camera, tokens in zip(CAMERAS, first, strict=True):
        kept = torch.stack([cache.read(camera, ROWS * 4, variant).patches for variant in range(3)]).float()
        drawn = (kept == tokens.patches[:, -1]).flatten(2).all(dim=2)  # variant b
        assert (drawn.sum(dim=0) == 1).all()
        assert set(drawn.float().argmax(dim=0).tolist()) == {0, 1, 2}
        if camera == CAMERAS[0]:
            chosen = drawn
        assert torch.equal(drawn, chosen), "all cameras of a sample show one variant"


@pytest.mark.slow
def test_lerobot_train_decodes_nothing_and_learns_the_same(
    kind: str,
    encoder_folder: Path,
    cache: Path,
    dataset_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frames = DatasetFrames(dataset_root)
    tables = tmp_path / "tables"
    export_tables(frames, tables)
    assert not list(tables.rglob("*.mp4"))
    assert LeRobotDataset("local/tables", root=tables).meta.camera_keys == []
    small = {
        "pixio_act": ["--policy.dim_model=32", "--policy.n_heads=2", "--policy.dim_feedforward=64"],
        "pixio_diffusion": ["--policy.down_dims=[16,32]", "--policy.n_groups=4", "--policy.horizon=8"],
    }[kind]
    steps = {"pixio_act": ["--policy.chunk_size=4", "--policy.n_action_steps=4"]}.get(
        kind, ["--policy.n_action_steps=4"]
    )

    def train(name: str, *arguments: str) -> Path:
        output = tmp_path / name
        common = [
            f"--policy.type={kind}", f"--policy.encoder={encoder_folder}", "--policy.grid=2", "--policy.device=cpu",
            "--dataset.repo_id=local/walks", "--dataset.video_backend=pyav", "--batch_size=4", "--steps=3",
            "--save_freq=3", "--log_freq=1", "--num_workers=0", "--env_eval_freq=0", f"--output_dir={output}",
        ]  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["lerobot-train", *common, *small, *steps, *arguments])
        lerobot_train.train()
        return output / "checkpoints" / "last" / "pretrained_model" / "model.safetensors"

    live = train("live", f"--dataset.root={dataset_root}")

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a frame was decoded")

    for name in ("lerobot.datasets.dataset_reader", "lerobot.datasets.video_utils"):
        monkeypatch.setattr(f"{name}.decode_video_frames", refuse)
    inputs = f"--policy.input_features={policy_inputs(frames)}"
    cached = train("cached", f"--dataset.root={tables}", f"--policy.cache={cache}", inputs)

    from safetensors.torch import load_file

    one, other = load_file(live), load_file(cached)
    assert one.keys() == other.keys()
    for key in one:
        torch.testing.assert_close(other[key], one[key], atol=1e-3, rtol=1e-2)


def test_a_cache_is_only_read_where_it_is_used(configure: Any, dataset_root: Path, cache: Path) -> None:
    loop = Loop(configure("pixio_act", input_features=None), dataset_root)
    step: Any = loop.preprocessor.steps[0]
    assert step.get_config() == {"cache": str(cache), "cameras": list(CAMERAS), "deltas": None}
    assert FeatureCache.open(step.cache).cameras == list(CAMERAS)
    assert CachedTokensStep(**step.get_config()) == step
