"""How a trained policy acts in a rollout."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.utils.constants import OBS_ENV_STATE, OBS_IMAGES, OBS_STATE
from numpy.typing import NDArray

from benchmark.remembering import EARLIER
from benchmark.tasks import HISTORY
from lerobot_policy_pixio.acting import Actor
from pixio_robot.tokens import Tokens


def open_actor(policy: str, checkpoint: Path, *, device: str) -> Actor:
    """Load a checkpoint as what ``rollout`` asks for actions."""
    return (HistoryActor if policy in HISTORY else Actor).from_pretrained(checkpoint, device=device)


class HistoryActor(Actor):
    """An ``Actor`` for policies that read several frames of each camera, from observations of a ``RememberingEnv``.

    A frame that was encoded at the last call is not encoded again.
    """

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._known: dict[bytes, tuple[torch.Tensor, torch.Tensor]] = {}

    @torch.inference_mode()
    def __call__(self, observation: Mapping[str, Any]) -> NDArray[np.float32]:
        """Plan the next action: [b 1 a]."""
        config: Any = self.policy.config
        steps = config.n_obs_steps
        told = {
            key: observation[name]
            for key, name in ((OBS_STATE, "agent_pos"), (OBS_ENV_STATE, "environment_state"))
            if name in observation
        }
        # Of states the present's alone is read: t copies of it have the shape of a training's batch.
        batch = {key: torch.from_numpy(np.stack([value] * steps, axis=1)) for key, value in told.items()}
        batch = self._preprocessor(batch)
        cameras = [key.removeprefix(f"{OBS_IMAGES}.") for key in config.image_features]
        frames = {
            name: np.concatenate([observation[f"{EARLIER}{name}"], observation["pixels"][name][:, None]], axis=1)
            for name in cameras
        }
        if config.train_encoder == "frozen":
            batch |= self._encode(frames)
        else:  # which takes no tokens that were made before
            batch |= {f"{OBS_IMAGES}.{name}": _to_images(pictures, self.policy) for name, pictures in frames.items()}
        return self._postprocessor(self.policy.predict_action_chunk(batch)).cpu().numpy()

    def _encode(self, frames: Mapping[str, NDArray[np.uint8]]) -> dict[str, Tokens]:
        """Frames [b t h w 3] of each camera -> ``Tokens`` [b t n d]."""
        policy: Any = self.policy
        known: dict[bytes, tuple[torch.Tensor, torch.Tensor]] = {}
        found = {}
        for name, pictures in frames.items():
            flat = pictures.reshape(-1, *pictures.shape[2:])
            keys = [hashlib.blake2b(picture.tobytes()).digest() for picture in flat]
            fresh = {key: row for row, key in enumerate(keys) if key not in self._known and key not in known}
            if fresh:
                (tokens,) = policy.eyes.encode([_to_images(flat[list(fresh.values())], policy)])
                known |= dict(zip(fresh, zip(tokens.classes, tokens.patches, strict=True), strict=True))
                self._grid = tokens.grid
            known |= {key: self._known[key] for key in keys if key in self._known}
            classes, patches = (torch.stack(part) for part in zip(*(known[key] for key in keys), strict=True))
            shape = pictures.shape[:2]
            found[f"{OBS_IMAGES}.{name}"] = Tokens(classes.unflatten(0, shape), patches.unflatten(0, shape), self._grid)
        self._known = known
        return found


def _to_images(pictures: NDArray[np.uint8], policy: Any) -> torch.Tensor:
    """Pictures [... h w 3] -> images [... 3 h w] where the policy is."""
    return torch.from_numpy(pictures).movedim(-1, -3).to(next(policy.parameters()).device)
