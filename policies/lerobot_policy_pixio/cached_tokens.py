"""Stock ``lerobot-train`` on a feature cache: a preprocessor step that puts cached tokens in the place of images.

LeRobot's data loader gives each sample's global frame index, so the step knows which frames a batch shows. At inference
there is no index: the step does nothing, the encoder runs, and the cache need not be there.

A checkpoint names the step by its class, so that LeRobot imports it only where it is used.
"""

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs import PipelineFeatureType, PolicyFeature
from lerobot.lerobot_types import EnvTransition, TransitionKey
from lerobot.processor import NormalizerProcessorStep, PolicyProcessorPipeline, ProcessorStep
from lerobot.utils.constants import OBS_STATE
from torch import Tensor

from lerobot_policy_pixio.frames import DatasetFrames, row_checksums
from lerobot_policy_pixio.options import PixioOptions
from lerobot_policy_pixio.token_store import TokenStore
from pixio_robot.cache import FeatureCache
from pixio_robot.encoder import Encoder
from pixio_robot.errors import CacheError

logger = logging.getLogger(__name__)

WAY_OUT = (
    "To train without a cache, set --policy.cache=null; to continue a checkpoint without its cache, or with another, "
    "change the step 'CachedTokensStep' in its policy_preprocessor.json, too."
)


def add_cached_tokens(preprocessor: PolicyProcessorPipeline, config: PixioOptions) -> None:
    """Let a policy's preprocessor read ``config.cache`` in training.

    The step comes first, where cameras and states still are as the data set has them.

    Raises:
        CacheError: If there is no such cache, or it does not hold what the policy would see.
    """
    assert config.cache is not None, "called only if the settings name a cache"
    path = Path(config.cache).absolute()
    check_fit(FeatureCache.open(path), config)
    step = CachedTokensStep(str(path), list(config.image_features), config.observation_delta_indices)
    preprocessor.steps = [step, *preprocessor.steps]
    normalizers: list[Any] = [step for step in preprocessor.steps if isinstance(step, NormalizerProcessorStep)]
    for normalizer in normalizers:  # which takes all that it normalises for tensors; images are not among them here
        normalizer.normalize_observation_keys = set(config.input_features or {}) - set(config.image_features)


def check_fit(cache: FeatureCache, config: PixioOptions) -> None:
    """Check that a cache holds what a policy would see.

    Args:
        cache: The cache.
        config: The policy's settings; where they name no encoder by its hash yet, any will do.

    Raises:
        CacheError: If the encoder, its precision, a camera, the images' size or the patches' pooling differ.
    """
    if not config.image_features:
        return  # a blind policy reads none of it
    known, pooled = cache.attributes, cache.attributes["pooled_to"]
    if config.encoder_hash not in (None, known["encoder_sha256"]):
        raise CacheError(
            f"{cache.path} was built by the encoder {known['encoder']!r} ({known['encoder_sha256'][:12]}), and the "
            f"policy sees through {config.encoder!r} ({str(config.encoder_hash)[:12]}): build a cache with that one."
        )
    if config.encoder_dtype != known["encoder_dtype"]:
        raise CacheError(
            f"{cache.path} was built in {known['encoder_dtype']}, and the policy's encoder computes in "
            f"{config.encoder_dtype}: set encoder_dtype={known['encoder_dtype']!r}, or build one with --dtype "
            f"{config.encoder_dtype}."
        )
    if pooled is not None and config.patches != "none" and pooled != config.cached_grid:
        wanted = "" if config.cached_grid is None else f" or {config.cached_grid}"
        raise CacheError(
            f"{cache.path} keeps patches averaged to {pooled} x {pooled}; pooling by {config.patches!r} to "
            f"{config.grid} x {config.grid} needs a cache built with --grid 0{wanted}."
        )
    side = config.image_size or known["image_size"]
    for camera in config.image_features:
        if camera not in cache.cameras:
            raise CacheError(
                f"{cache.path} has no camera {camera!r}; it has {', '.join(cache.cameras)}. Build it with all of the "
                "policy's cameras, or leave the camera out of input_features."
            )
        if cache.size(camera) != (side, side):
            height, width = cache.size(camera)
            raise CacheError(
                f"{cache.path} saw {camera!r} at {height} x {width} pixels, and the policy sees {side} x {side}: "
                f"build the cache with --size {side}, or set image_size."
            )


def cache_settings(config: PixioOptions, encoder: Encoder, frames: DatasetFrames) -> dict[str, Any]:
    """Give what ``build_cache`` and ``cache_path`` are told for a cache that fits a policy: "grid" and "size"."""
    return {"grid": config.cached_grid, "size": frames.resize_to(config.image_size or encoder.spec.image_size)}


@dataclass
class CachedTokensStep(ProcessorStep):
    """Puts a cache's ``Tokens`` in the place of each camera's images, in batches that say which frames they show.

    Where no gradient is taken, images that are there stay: a validation loss is that of clean frames. Otherwise each
    sample shows one of the cache's variants, drawn from PyTorch's own generator: LeRobot saves and restores its state.

    Args:
        cache: The cache's folder.
        cameras: The policy's cameras.
        deltas: Which frames a sample shows, relative to its own and one after the other, such as [-1, 0]; None for
            its own without a time axis.
    """

    cache: str
    cameras: list[str]
    deltas: list[int] | None = None

    def __call__(self, transition: EnvTransition) -> EnvTransition:
        """Replace images by tokens: classes [b c d] and patches [b n d], or [b t c d] and [b t n d].

        Raises:
            CacheError: If the cache cannot be used, or the batch is not of the data set that it was built from.
        """
        known: dict[str, Any] = transition.get(TransitionKey.COMPLEMENTARY_DATA) or {}
        observation: dict[str, Any] = dict(transition.get(TransitionKey.OBSERVATION) or {})
        index = known.get("index")
        if index is None or (not torch.is_grad_enabled() and all(camera in observation for camera in self.cameras)):
            return transition
        index = index.reshape(-1)
        self._check_rows(index, known, observation)
        rows = index  # b, or b t
        if self.deltas is not None:
            rows = index[:, None] + _shown(torch.tensor(self.deltas, device=index.device), known)
        variants = torch.zeros_like(index)
        if torch.is_grad_enabled():  # in training, and not where it is validated
            if self._opened.variants:
                variants = torch.randint(self._opened.variants + 1, index.shape).to(index.device)
            elif any(camera in observation for camera in self.cameras):
                self._warn()
        variants = variants.view(-1, *[1] * (rows.ndim - 1)).expand_as(rows)
        tokens = self._store(index.device).gather(rows, variants)
        return {**transition, TransitionKey.OBSERVATION: observation | tokens}  # type: ignore[return-value]

    def get_config(self) -> dict[str, Any]:
        """What a checkpoint keeps of the step."""
        return {"cache": self.cache, "cameras": self.cameras, "deltas": self.deltas}

    def transform_features(
        self, features: dict[PipelineFeatureType, dict[str, PolicyFeature]]
    ) -> dict[PipelineFeatureType, dict[str, PolicyFeature]]:
        """Leave the features as they are: a camera stays a camera."""
        return features

    @cached_property
    def _opened(self) -> FeatureCache:
        try:
            return FeatureCache.open(self.cache)
        except CacheError as error:
            raise CacheError(f"{error} {WAY_OUT}") from error

    @cached_property
    def _checksums(self) -> np.ndarray:
        return self._opened.row_checksums

    def _store(self, device: torch.device) -> TokenStore:
        if self._kept is None or self._kept[0] != device:
            self._kept = device, TokenStore(self._opened, self.cameras, device)
        return self._kept[1]

    def __post_init__(self) -> None:
        self._kept: tuple[torch.device, TokenStore] | None = None
        self._warned = False

    def _check_rows(self, index: Tensor, known: dict[str, Any], observation: dict[str, Any]) -> None:
        """Refuse a batch whose episodes, times and states are not those that the cache was built beside."""
        state = observation.get(OBS_STATE)
        if state is not None and self.deltas is not None:
            state = state[:, self.deltas.index(0)]
        parts = (known.get("episode_index"), known.get("timestamp"), state)
        episodes, times, state = (None if part is None else part.cpu().numpy() for part in parts)
        rows = index.cpu().numpy()
        if episodes is None or times is None:
            raise CacheError("The batch has an index, but no episode_index and timestamp to check it by.")
        inside = rows.size and rows.min() >= 0 and rows.max() < len(self._checksums)
        if not inside or (self._checksums[rows] != row_checksums(episodes, times, state)).any():
            raise CacheError(
                f"The frames of this batch are not those that {self.cache} was built from: the data set was edited "
                f"since, or is another one. Build the cache anew with `pixio-cache build`. {WAY_OUT}"
            )

    def _warn(self) -> None:
        """Say once that the loader's images are not looked at, augmented or not, which a batch does not tell."""
        if not self._warned:
            logger.warning(
                "Training reads tokens of clean frames from %s: --dataset.image_transforms, if enabled, do nothing. "
                "For augmentation build a cache with `pixio-cache build --variants`.",
                self.cache,
            )
        self._warned = True


def _shown(deltas: Tensor, known: dict[str, Any]) -> Tensor:
    """Offsets [b t] of the frames that each sample shows: ``deltas`` clamped to its episode, as LeRobot clamps them."""
    beyond = next((known[key] for key in known if key.startswith("observation.") and key.endswith("_is_pad")), None)
    if beyond is None:
        raise CacheError(
            f"The batch does not say which of its {len(deltas)} observations lie beyond the start of an episode: it "
            "needs a mask such as 'observation.state_is_pad', which LeRobot's data loader gives."
        )
    offsets = deltas.expand(beyond.shape)
    first = offsets.masked_fill(beyond, int(deltas.max())).amin(dim=1, keepdim=True)
    last = offsets.masked_fill(beyond, int(deltas.min())).amax(dim=1, keepdim=True)
    return offsets.clamp(first, last)
