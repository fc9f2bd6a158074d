"""``pixio-train``: the command line of ``training.train``, in the words of ``lerobot-train``."""

import logging
from dataclasses import dataclass, field
from pathlib import Path

import torch
from lerobot.configs import PreTrainedConfig, parser
from lerobot.configs.default import WandBConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.envs import EnvConfig
from lerobot.utils.import_utils import register_third_party_plugins
from lerobot.utils.utils import init_logging

from lerobot_policy_pixio.cache_folders import cache_path, find_caches
from lerobot_policy_pixio.cached_tokens import cache_settings, check_fit
from lerobot_policy_pixio.evaluation import EvalOptions, Evaluation
from lerobot_policy_pixio.frames import DECODER, DatasetFrames, open_dataset
from lerobot_policy_pixio.options import PixioOptions
from lerobot_policy_pixio.training import check_run, make_policy, train, with_features
from lerobot_policy_pixio.vision import check_same
from pixio_robot.cache import FeatureCache, build_cache
from pixio_robot.checkpoints import load_encoder
from pixio_robot.encoder import Encoder
from pixio_robot.errors import CacheError, SettingError, told_on_one_line

logger = logging.getLogger(__name__)


@dataclass
class DatasetOptions:
    """Which demonstrations to train on."""

    root: str | None = None
    """The folder of a LeRobotDataset v3."""
    repo_id: str | None = None
    """Its name on the hub, from where it comes where no ``root`` is given."""

    def open(self) -> LeRobotDataset:
        """Open the data set.

        Raises:
            SettingError: If neither field is set.
            DataError: If there is none in the folder.
        """
        if self.root is not None:
            return open_dataset(self.root)
        if self.repo_id is None:
            raise SettingError("Which demonstrations? Name a folder by --dataset.root, or a data set by its repo_id.")
        return LeRobotDataset(self.repo_id, video_backend=DECODER)


@dataclass
class PixioTrainConfig:
    """Train pixio_act or pixio_diffusion from a feature cache. The same command again continues a stopped run.

    ``pixio-train --policy.type=pixio_act --help`` lists the settings of that policy.
    """

    dataset: DatasetOptions = field(default_factory=DatasetOptions)
    """Which demonstrations to train on."""
    policy: PreTrainedConfig | None = None
    """``--policy.type=pixio_act`` or ``pixio_diffusion`` and its settings, or ``--policy.path`` of a trained one to
    start from."""
    cache: str | None = None
    """The feature cache; when absent that of ``--policy.cache``, or one beside the data set, which is built if there is
    none that fits."""
    output_dir: Path | None = None
    """The run's folder; ``outputs/train/<policy>-<data set>-seed<seed>`` when absent."""
    steps: int = 20_000
    """Optimizer steps."""
    batch_size: int = 64
    """Frames per step."""
    seed: int = 0
    """Of the initial weights, the order of frames, dropout and noise."""
    log_freq: int = 200
    """Steps between lines of the log."""
    save_freq: int = 5_000
    """Steps between checkpoints."""
    memory_gb: float | None = None
    """Hold up to so many gigabytes of tokens in the device's memory; half of what is free when absent."""
    env: EnvConfig | None = None
    """An environment to evaluate in."""
    env_eval_freq: int = 5_000
    """Steps between evaluations; 0 for none. The last step always has one."""
    eval: EvalOptions = field(default_factory=EvalOptions)
    """How to evaluate."""
    wandb: WandBConfig = field(default_factory=WandBConfig)
    """Weights & Biases, as in LeRobot."""

    @classmethod
    def __get_path_fields__(cls) -> list[str]:
        """Let LeRobot's parser take ``--policy.path`` aside."""
        return ["policy"]


@told_on_one_line("pixio-train")
def main() -> None:
    """Run the command."""
    register_third_party_plugins()
    init_logging()
    run()  # type: ignore[call-arg]  # the parser makes the argument


@parser.wrap()
def run(config: PixioTrainConfig) -> None:
    """Train as the settings say."""
    policy = _policy_of(config)
    frames = DatasetFrames(config.dataset.open(), list(policy.image_features) if policy.input_features else None)
    evaluation = None
    if config.env is not None and config.env_eval_freq > 0:
        evaluation = Evaluation(env=config.env, every=config.env_eval_freq, **vars(config.eval))
    folder = config.output_dir or Path("outputs/train") / f"{policy.type}-{_name_of(config)}-seed{config.seed}"
    check_run(policy, frames, folder, batch_size=config.batch_size, seed=config.seed)
    cache, encoder = config.cache or policy.cache, None
    if cache is None and not policy.blind and policy.train_encoder == "frozen":
        cache, encoder = find_or_build_cache(frames, policy)
    _, log = train(
        policy,
        frames,
        cache,
        folder,
        steps=config.steps,
        batch_size=config.batch_size,
        seed=config.seed,
        save_every=config.save_freq,
        log_every=config.log_freq,
        encoder=encoder,
        memory_gb=config.memory_gb,
        evaluation=evaluation,
        wandb=config.wandb,
    )
    logger.info("Trained: %s", ", ".join(f"{key} {value:.4g}" for key, value in log[-1].items()))
    logger.info("The policy: %s", folder / "checkpoints" / "last" / "pretrained_model")


def _name_of(config: PixioTrainConfig) -> str:
    return Path(config.dataset.root or config.dataset.repo_id or "").absolute().name


def _policy_of(config: PixioTrainConfig) -> PixioOptions:
    path = parser.get_path_arg("policy")
    if path:
        overrides = parser.get_yaml_overrides("policy") + (parser.get_cli_overrides("policy") or [])
        config.policy = PreTrainedConfig.from_pretrained(path, cli_overrides=overrides)
        config.policy.pretrained_path = Path(path)
    if not isinstance(config.policy, PixioOptions):
        given = "none" if config.policy is None else config.policy.type
        raise SettingError(
            f"pixio-train trains --policy.type=pixio_act or pixio_diffusion; given: {given}. LeRobot's own policies "
            "train with lerobot-train."
        )
    if config.policy.use_peft:
        raise SettingError(
            f"pixio-train has no --peft, by which {path or 'this policy'} was trained (use_peft=true): train on with "
            "lerobot-train, from images."
        )
    if config.policy.push_to_hub:
        raise SettingError(
            "pixio-train writes to disk alone: leave push_to_hub out, and upload a finished policy by "
            "`hf upload <repo> <run>/checkpoints/last/pretrained_model`."
        )
    return config.policy


def find_or_build_cache(frames: DatasetFrames, policy: PixioOptions) -> tuple[Path, Encoder]:
    """Give a cache beside the data set that fits a policy, made now if there is none, and the policy's encoder.

    Raises:
        CheckpointError: If the encoder is not the one that the policy was trained with.
        SettingError: If the policy's settings do not go together.
        DataError: If the data set lacks what the policy needs.
    """
    policy = with_features(policy, frames)
    encoder = load_encoder(policy.encoder, device=policy.device, dtype=getattr(torch, policy.encoder_dtype))
    policy.settle_grid(encoder.spec)
    if policy.encoder_hash is not None:
        check_same(policy, encoder)  # before hours are spent on its cache
    settings, root = cache_settings(policy, encoder, frames), frames.dataset.root
    path = cache_path(root, encoder, frames, **settings)
    found = [_open_fitting(place, frames, policy, encoder) for place in find_caches(root)]
    if fitting := [cache for cache in found if cache is not None]:
        best = min(fitting, key=lambda cache: (cache.path != path, cache.variants))
        logger.info("Training from the cache %s", best.path)
        return best.path, encoder
    make_policy(policy, frames, seed=0, encoder=encoder)  # what cannot be made needs no cache
    logger.info("No cache of %s fits: building %s", policy.encoder, path)
    build_cache(path, encoder, frames, **settings)
    return path, encoder


def _open_fitting(path: Path, frames: DatasetFrames, policy: PixioOptions, encoder: Encoder) -> FeatureCache | None:
    """The cache, if it is whole and fits."""
    try:
        cache = FeatureCache.open(path, encoder=encoder, source=frames)
        check_fit(cache, policy)
    except CacheError as error:
        logger.debug("Left out: %s", error)
        return None
    return cache
