"""One small data set, one small encoder and its cache, for all tests of the policies."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.configs.video import RGBEncoderConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.factory import get_policy_class

from lerobot_policy_pixio import PixioACTConfig, PixioDiffusionConfig
from lerobot_policy_pixio.frames import DatasetFrames
from pixio_robot import Encoder, build_cache, create_encoder, load_encoder

CAMERAS = ("observation.images.top", "observation.images.wrist")
EPISODES = (9, 14, 11)  # frames
SIDE = 64


def write_dataset(
    root: Path, *, seed: int = 0, cameras: tuple[str, ...] = CAMERAS, dtype: str = "video", spoilt: int | None = None
) -> Path:
    """Random walks, and cameras that show where they are; one action may be NaN."""
    rng = np.random.default_rng(seed)
    image = {"dtype": dtype, "shape": (SIDE, SIDE, 3), "names": ["height", "width", "channels"]}
    vector = {"dtype": "float32", "shape": (3,), "names": ["x", "y", "z"]}
    features = {"observation.state": vector, "action": vector} | dict.fromkeys(cameras, image)
    dataset = LeRobotDataset.create(
        "local/walks", fps=10, features=features, root=root, rgb_encoder=RGBEncoderConfig(vcodec="h264")
    )
    rows, columns = np.mgrid[:SIDE, :SIDE]
    numbers = count()
    for length in EPISODES:
        state = rng.uniform(0.2, 0.8, 3)
        for _ in range(length):
            action = rng.normal(0, 0.05, 3)
            blobs = [np.exp(-((rows / SIDE - state[0]) ** 2 + (columns / SIDE - s) ** 2) / 0.02) for s in state]
            picture = (255 * np.stack(blobs, axis=-1)).astype(np.uint8)
            pictures = {camera: np.rot90(picture, turns).copy() for turns, camera in enumerate(cameras)}
            told = np.full(3, np.nan) if next(numbers) == spoilt else action
            low = {"observation.state": state.astype(np.float32), "action": told.astype(np.float32)}
            dataset.add_frame({**low, **pictures, "task": "walk"})
            state = state + action
        dataset.save_episode()
    dataset.finalize()
    return root


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """More threads than work only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def dataset_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "walks")


@pytest.fixture(scope="session")
def make_dataset() -> Callable[..., Path]:
    return write_dataset


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders") / "tiny"
    made = create_encoder("pixio_vitt16", seed=0, width=32, depth=2, heads=2, image_size=SIDE)
    with torch.no_grad():
        for parameter in made.backbone.parameters():
            parameter.mul_(4.0)  # fresh weights are so small that all pictures look alike
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def encoder(encoder_folder: Path) -> Encoder:
    return load_encoder(encoder_folder)


@pytest.fixture(scope="session")
def cache(dataset_root: Path, encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("caches") / "walks.zarr"
    build_cache(path, encoder, DatasetFrames(dataset_root), grid=2, chunk=16)
    return path


@pytest.fixture
def make_config(encoder_folder: Path) -> Callable[..., PixioACTConfig]:
    def make(**changes: Any) -> PixioACTConfig:
        settings: dict[str, Any] = {
            "encoder": str(encoder_folder),
            "device": "cpu",
            "grid": 2,
            "n_vae_encoder_layers": 1,
        }
        settings |= {"dim_model": 32, "n_heads": 2, "dim_feedforward": 64, "n_encoder_layers": 1, "latent_dim": 8}
        settings |= {"chunk_size": 5, "n_action_steps": 5}
        return PixioACTConfig(**(settings | changes))

    return make


@pytest.fixture
def make_diffusion_config(encoder_folder: Path) -> Callable[..., PixioDiffusionConfig]:
    def make(**changes: Any) -> PixioDiffusionConfig:
        settings: dict[str, Any] = {"encoder": str(encoder_folder), "device": "cpu", "grid": 2, "feature_dim": 32}
        settings |= {"horizon": 8, "n_action_steps": 4, "down_dims": (16, 32), "n_groups": 4}
        settings |= {"diffusion_step_embed_dim": 16, "num_train_timesteps": 10, "num_inference_steps": 3}
        return PixioDiffusionConfig(**(settings | changes))

    return make


@pytest.fixture(params=["pixio_act", "pixio_diffusion"])
def kind(request: pytest.FixtureRequest) -> str:
    """Each of the policies in turn."""
    return request.param


@pytest.fixture
def make(
    make_config: Callable[..., PixioACTConfig], make_diffusion_config: Callable[..., PixioDiffusionConfig]
) -> Callable[..., Any]:
    """Make a policy of a kind, with states and actions of width 3 and some of the cameras."""

    def make(kind: str, *, seed: int = 0, cameras: int = 2, made_of: Any = None, **changes: Any) -> Any:
        vector, picture = (3,), (3, SIDE, SIDE)
        features = {"observation.state": PolicyFeature(type=FeatureType.STATE, shape=vector)}
        features |= {camera: PolicyFeature(type=FeatureType.VISUAL, shape=picture) for camera in CAMERAS[:cameras]}
        outputs = {"action": PolicyFeature(type=FeatureType.ACTION, shape=vector)}
        settings = {"input_features": features, "output_features": outputs} | changes
        config = (make_config if kind == "pixio_act" else make_diffusion_config)(**settings)
        torch.manual_seed(seed)
        return get_policy_class(kind)(config, **(made_of or {}))

    return make


@pytest.fixture
def make_batch() -> Callable[..., dict[str, Any]]:
    """Make a training batch for a policy, in the shapes that LeRobot's data loader gives it."""

    def make(policy: Any, *, size: int = 2, seed: int = 0) -> dict[str, Any]:
        config, generator = policy.config, torch.Generator().manual_seed(seed)
        steps = config.observation_delta_indices
        lead, chunk = (size,) if steps is None else (size, len(steps)), len(config.action_delta_indices)
        batch: dict[str, Any] = {
            camera: torch.rand(*lead, 3, SIDE, SIDE, generator=generator) for camera in config.image_features
        }
        batch["observation.state"] = torch.randn(*lead, 3, generator=generator)
        batch["action"] = torch.randn(size, chunk, 3, generator=generator)
        batch["action_is_pad"] = torch.zeros(size, chunk, dtype=torch.bool)
        batch["task"] = [f"task {number}" for number in range(size)]
        return batch

    return make


@pytest.fixture
def act() -> Callable[..., torch.Tensor]:
    """Let a policy plan from the newest observation of a training batch, with noise of a seed."""

    def act(policy: Any, batch: dict[str, Any]) -> torch.Tensor:
        several = policy.config.observation_delta_indices is not None
        seen = {key: value for key, value in batch.items() if not key.startswith("action")}
        if several:
            newest = {key: value for key, value in seen.items() if key != "task"}
            seen |= {key: value[:, -1] if isinstance(value, torch.Tensor) else value for key, value in newest.items()}
        policy.eval().reset()
        torch.manual_seed(0)
        return torch.stack([policy.select_action(dict(seen)) for _ in range(policy.config.n_action_steps)], dim=1)

    return act
