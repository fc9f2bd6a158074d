"""The policies: how each is set up for an arm."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature
from lerobot.utils.constants import OBS_ENV_STATE, OBS_STATE
from numpy.typing import NDArray
from small_policies import small_act, small_diffusion

from benchmark.arms import Sight, arm_options, draw_cnn, find_learner
from benchmark.configuration_pixio_mlp import PixioMLPConfig
from benchmark.settings import Benchmark
from benchmark.tasks import HISTORY
from lerobot_policy_pixio.options import PixioOptions
from lerobot_policy_pixio.vision import Eyes
from pixio_robot import load_encoder
from pixio_robot.errors import PixioRobotError, SettingError

ACT_CHUNKS = {"aloha": {"chunk_size": 100, "n_action_steps": 50}}
"""Suite to how far ACT plans, and acts before it looks again, where ``small_act`` does not go as far. At 50 steps per
second a chunk of 16 is a third of a second, and policies drift; ACT's authors plan 100 (arXiv 2304.13705)."""


def check_arms(config: Benchmark) -> None:
    """Refuse encoders that cannot be read, and options that do not fit them, before any cell is run.

    Raises:
        SettingError: There is one; says of which arm.
    """
    features = {"observation.images.camera": PolicyFeature(FeatureType.VISUAL, (3, config.size, config.size))}
    first = next(iter(config.arms.values()))  # whose sizes random weights have
    for arm in config.arm_names:
        if arm in ("blind", "state"):
            continue
        try:
            black, source = torch.zeros(2, 3, config.size, config.size, dtype=torch.uint8), config.arms.get(arm, first)
            if learnt := find_learner(source, 0):
                encoder = learnt[1]([black])
            else:
                encoder = draw_cnn(0, black) if arm == "cnn" else load_encoder(source)
            sight = Sight(encoder=encoder, source=source, options=arm_options(config, arm))
            for policy in config.policies:
                chosen = configure(policy, sight, features, suite="", steps=1, device="cpu")
                Eyes(chosen, dim=64, output="tokens", encoder=encoder)
        except PixioRobotError as error:
            named = f"arms.{arm}={config.arms[arm]}" if arm in config.arms else f"the arm {arm}"
            told = f" with options.{arm}={config.options[arm]}" if arm in config.options else ""
            raise SettingError(f"{named}{told}: {error}") from error


def configure(
    policy: str, sight: Sight, features: Mapping[str, PolicyFeature], *, suite: str, steps: int, device: str
) -> PixioOptions:
    """Set a policy up for an arm.

    Args:
        policy: "act", "diffusion" or "mlp".
        sight: What the arm sees through.
        features: The data set's; an arm reads those that are its own.
        suite: What it acts in.
        steps: Length of the training.
        device: Where it runs.
    """
    if policy == "act":
        config: Any = small_act(sight.source, steps=steps, device=device)
    elif policy == "diffusion":
        config = small_diffusion(sight.source, steps=steps, device=device)
    else:
        config = PixioMLPConfig(encoder=sight.source, n_obs_steps=HISTORY["mlp"], device=device)
    changes: dict[str, Any] = (ACT_CHUNKS.get(suite, {}) if policy == "act" else {}) | {
        "blind": sight.encoder is None,
        "input_features": {name: one for name, one in features.items() if _is_read(name, one, sight)},
        "normalization_mapping": {"ENV": NormalizationMode.MEAN_STD} | config.normalization_mapping,
    }
    if sight.encoder is not None and policy == "mlp":
        has_classes = sight.encoder.spec.class_tokens > 0
        changes |= {"classes": "mean", "patches": "none"} if has_classes else {"patches": "average", "grid": 1}
    config = replace(config, **(changes | dict(sight.options)))
    if sight.encoder is not None:
        config.settle_grid(sight.encoder.spec)
    return config


def soften(stats: dict[str, dict[str, NDArray[np.float32]]]) -> None:
    """Keep numbers of the whole state that hardly vary in the demonstrations from being blown up, in place.

    What moved by less than a centimetre (or a hundredth of a radian) there may move more under a policy, and divided by
    its tiny deviation it would drown the rest.
    """
    if OBS_ENV_STATE in stats:
        stats[OBS_ENV_STATE]["std"] = np.maximum(stats[OBS_ENV_STATE]["std"], 0.01)


def _is_read(name: str, feature: PolicyFeature, sight: Sight) -> bool:
    if feature.type is FeatureType.VISUAL:
        return sight.encoder is not None
    return name == OBS_STATE or (sight.state and name == OBS_ENV_STATE)
