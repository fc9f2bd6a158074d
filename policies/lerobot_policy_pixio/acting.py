"""A policy as a plain function of observations, for rollouts and robots that know nothing of LeRobot."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.configs.policies import PreTrainedConfig
from lerobot.envs.utils import preprocess_observation
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.processor import PolicyProcessorPipeline
from lerobot.utils.constants import OBS_ENV_STATE, OBS_STATE, OBS_STR
from numpy.typing import NDArray
from peft import PeftConfig, PeftModel
from torch import Tensor

from lerobot_policy_pixio.options import EncoderDtype, PixioOptions
from pixio_robot.errors import CheckpointError, DataError, SettingError, UnknownNameError


class Actor:
    """Turns a batch of observations into chunks of actions, with the policy's own normalisation around it.

    It holds no state: each call plans anew from what is seen. Whoever carries out a chunk with eyes shut has not seen
    the steps before the present, so a policy that reads several observation steps is shown the present in all of them,
    as LeRobot does at the start of an episode. It reads motion under ``lerobot-eval`` alone: to compare policies
    through this class, train them with ``n_obs_steps=1``.

    Args:
        policy: A policy that plans chunks of actions.
        preprocessor: Its LeRobot pipeline from observations to what the policy reads.
        postprocessor: Its LeRobot pipeline from what the policy says to actions.
        task: What a task-conditioned policy is to do, unless the observations say.

    Raises:
        SettingError: If the policy averages over the chunks of several calls.
    """

    def __init__(
        self, policy: PreTrainedPolicy, preprocessor: Any, postprocessor: Any, *, task: str | None = None
    ) -> None:
        if (weight := getattr(policy.config, "temporal_ensemble_coeff", None)) is not None:
            raise SettingError(
                f"temporal_ensemble_coeff={weight} averages over the chunks of several steps, and an Actor remembers "
                "none: let lerobot-eval or lerobot-rollout run this policy, or set it to null in config.json."
            )
        self.policy = policy.eval()
        self.task = task
        self._preprocessor = preprocessor
        self._postprocessor = postprocessor

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, device: str | None = None, task: str | None = None) -> "Actor":
        """Load a LeRobot checkpoint.

        Args:
            folder: A ``pretrained_model`` folder, or the run around it.
            device: Where to run it; where it was trained when absent.
            task: What a task-conditioned policy is to do, unless the observations say.

        Raises:
            CheckpointError: If there is no checkpoint, or it needs another encoder.
            SettingError: If the policy averages over the chunks of several calls, or the device is not there.
        """
        return cls(*open_checkpoint(folder, device=device), task=task)

    @torch.inference_mode()
    def __call__(self, observation: Mapping[str, Any]) -> NDArray[np.float32]:
        """Plan the next actions.

        Args:
            observation: {"pixels": {camera: uint8 [b h w 3]}, "agent_pos": float32 [b s]}, and "task": b names, if the
                policy wants to be told and they differ.

        Returns:
            The ``n_action_steps`` actions to execute before looking again, float32 [b k a], in the units of the
            demonstrations.

        Raises:
            UnknownNameError: If a camera or a state that the policy reads is not among what is observed.
            DataError: If a state is of another width.
        """
        batch: dict[str, Any] = preprocess_observation(dict(observation))
        config: Any = self.policy.config
        _check_observed(batch, _read_features(config))
        tasks = observation.get("task", self.task)
        if tasks is not None:
            size = len(next(iter(batch.values())))
            batch["task"] = [tasks] * size if isinstance(tasks, str) else list(tasks)
        batch = self._preprocessor(batch)
        if config.observation_delta_indices is not None:
            self.policy.reset()  # else it would plan from what it saw in another call
            batch = {key: _repeat(key, value, len(config.observation_delta_indices)) for key, value in batch.items()}
        chunk = self.policy.predict_action_chunk(batch)[:, : getattr(config, "n_action_steps", 1)]
        return self._postprocessor(chunk).cpu().numpy()


def _read_features(config: PreTrainedConfig) -> dict[str, PolicyFeature]:
    """Of the features that a data set has, those that a policy reads: no camera if it is blind, no other sensors."""
    read = {OBS_STATE, OBS_ENV_STATE, *config.image_features}
    return {name: feature for name, feature in (config.input_features or {}).items() if name in read}


def _check_observed(batch: Mapping[str, Tensor], features: Mapping[str, PolicyFeature]) -> None:
    """Refuse observations of another robot, or from other cameras. Pictures may be of any size."""
    for name, feature in features.items():
        if name not in batch:
            raise UnknownNameError("observation that this policy reads", name, batch)
        if feature.type is not FeatureType.VISUAL and tuple(batch[name].shape[1:]) != tuple(feature.shape):
            raise DataError(
                f"This policy reads {name!r} of shape {list(feature.shape)}; observed is one of "
                f"{list(batch[name].shape[1:])}."
            )


def _repeat(key: str, value: Any, steps: int) -> Any:
    """The same observation at every step: [b ...] -> [b t ...]."""
    if not (key.startswith(OBS_STR) and isinstance(value, Tensor)):
        return value
    return value.unsqueeze(1).expand(-1, steps, *value.shape[1:])


def find_checkpoint(folder: str | Path) -> Path:
    """The ``pretrained_model`` folder of a checkpoint or of a whole run.

    Raises:
        CheckpointError: If there is none.
    """
    folder = Path(folder)
    for place in (folder, folder / "pretrained_model", folder / "checkpoints" / "last" / "pretrained_model"):
        if (place / "config.json").is_file():
            return place
    raise CheckpointError(
        f"There is no policy checkpoint in {folder.absolute()}: give a pretrained_model folder with config.json, or "
        "the folder of a run."
    )


def open_checkpoint(
    folder: str | Path, *, device: str | None = None, dtype: EncoderDtype | None = None
) -> tuple[PreTrainedPolicy, PolicyProcessorPipeline, PolicyProcessorPipeline]:
    """Load a policy in evaluation mode, and its pre- and postprocessor.

    Args:
        folder: A ``pretrained_model`` folder, or the run around it.
        device: Where to run; where it was trained when absent.
        dtype: What a frozen encoder of ours computes in; as in training when absent.

    Raises:
        CheckpointError: If there is no such checkpoint, or its encoder is missing or another.
        SettingError: If the device is not there.
    """
    folder = find_checkpoint(folder)
    config = PreTrainedConfig.from_pretrained(folder)
    config.device = device or config.device
    if str(config.device).startswith("cuda") and not torch.cuda.is_available():
        raise SettingError(f"This machine has no device {config.device!r} that PyTorch can use; try device cpu.")
    if dtype is not None and isinstance(config, PixioOptions) and config.train_encoder == "frozen":
        config.encoder_dtype = dtype
    overrides = {"device_processor": {"device": config.device}}
    pipelines = make_pre_post_processors(config, pretrained_path=str(folder), preprocessor_overrides=overrides)
    return load_policy(folder, config).eval(), *pipelines


def load_policy(folder: Path, config: PreTrainedConfig) -> PreTrainedPolicy:
    """Load the policy of a checkpoint; if that holds additions by PEFT alone, those within the policy that they extend.

    Args:
        folder: A ``pretrained_model`` folder.
        config: Its settings, changed where they should be.

    Raises:
        CheckpointError: If it needs another encoder.
    """
    policy_class = get_policy_class(config.type)
    if not config.use_peft:
        return policy_class.from_pretrained(folder, config=config)
    adapter = PeftConfig.from_pretrained(str(folder))
    policy: Any = policy_class.from_pretrained(str(adapter.base_model_name_or_path), config=config)
    PeftModel.from_pretrained(policy, str(folder), config=adapter)  # puts them into the policy
    return policy
