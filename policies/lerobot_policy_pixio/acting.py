"""A policy as a plain function of observations, for rollouts and robots that know nothing of LeRobot."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.envs.utils import preprocess_observation
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.policies.pretrained import PreTrainedPolicy
from numpy.typing import NDArray

from pixio_robot.errors import CheckpointError


class Actor:
    """Turns a batch of observations into chunks of actions, with the policy's own normalisation around it.

    It holds no state: each call plans anew from what is seen.

    Args:
        policy: A policy that plans chunks of actions.
        preprocessor: Its LeRobot pipeline from observations to what the policy reads.
        postprocessor: Its LeRobot pipeline from what the policy says to actions.
    """

    def __init__(self, policy: PreTrainedPolicy, preprocessor: Any, postprocessor: Any) -> None:
        self.policy = policy.eval()
        self._preprocessor = preprocessor
        self._postprocessor = postprocessor

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, device: str | None = None) -> "Actor":
        """Load a LeRobot checkpoint.

        Args:
            folder: A ``pretrained_model`` folder.
            device: Where to run it; where it was trained when absent.

        Raises:
            CheckpointError: If there is no checkpoint, or it needs another encoder.
        """
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"There is no policy checkpoint in {folder.absolute()}.")
        config = PreTrainedConfig.from_pretrained(folder)
        config.device = device or config.device
        policy = get_policy_class(config.type).from_pretrained(folder, config=config)
        overrides = {"device_processor": {"device": config.device}}
        pipelines = make_pre_post_processors(config, pretrained_path=str(folder), preprocessor_overrides=overrides)
        return cls(policy, *pipelines)

    @torch.inference_mode()
    def __call__(self, observation: Mapping[str, Any]) -> NDArray[np.float32]:
        """Plan the next actions.

        Args:
            observation: {"pixels": {camera: uint8 [b h w 3]}, "agent_pos": float32 [b s]}.

        Returns:
            The ``n_action_steps`` actions to execute before looking again, float32 [b k a], in the units of the
            demonstrations.
        """
        batch = self._preprocessor(preprocess_observation(dict(observation)))
        steps = getattr(self.policy.config, "n_action_steps", 1)
        chunk = self.policy.predict_action_chunk(batch)[:, :steps]
        return self._postprocessor(chunk).cpu().numpy()
