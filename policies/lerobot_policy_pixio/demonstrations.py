"""Demonstrations in memory: states, actions and what cameras saw, as tensors, and batches gathered from them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.processor import PolicyProcessorPipeline
from lerobot.utils.constants import ACTION, OBS_ENV_STATE, OBS_STATE
from torch import Tensor

from lerobot_policy_pixio.cached_tokens import check_fit
from lerobot_policy_pixio.decoded import DecodedFrames, PixelStore
from lerobot_policy_pixio.frames import DatasetFrames
from lerobot_policy_pixio.modeling_pixio import Batch, PixioPolicy
from lerobot_policy_pixio.options import PixioOptions
from lerobot_policy_pixio.token_store import TokenStore
from pixio_robot.cache import FeatureCache
from pixio_robot.errors import DataError, SettingError


class Demonstrations:
    """A data set's normalised states and actions, and its cached tokens or decoded images, gathered by frame.

    Batches are what LeRobot's data loader and preprocessor would give, without their per-item work: where a window of
    observations or actions passes the start or end of its episode, it repeats the first or last frame there;
    ``action_is_pad`` marks such actions.

    Args:
        frames: The data set.
        policy: The policy that will be trained; its configuration says which features and windows it reads.
        preprocessor: The policy's own, from ``make_pre_post_processors``.
        cache: A feature cache of this data set and the policy's encoder; not needed by a blind policy.
        pixels: Decoded frames of this data set, in place of a cache; the encoder then runs at every step.
        memory_gb: Hold up to so many gigabytes of tokens in the device's memory; half of what is free when absent.

    Attributes:
        rows: Global indices [n] of the frames to train on: all but the ``drop_n_last_frames`` of each episode, where
            the configuration has that setting.
        variants: Number of augmented variants in the cache or the pixels, besides the clean frames.

    Raises:
        DataError: If the data set lacks a feature of the policy, holds NaN, or has only episodes that are too short; or
            if ``pixels`` are of another.
        CacheError: If the cache is of another encoder, data set or setting.
        SettingError: If the policy needs a cache and none is given, or trains its encoder from one.
    """

    def __init__(
        self,
        frames: DatasetFrames,
        policy: PixioPolicy,
        preprocessor: PolicyProcessorPipeline,
        cache: str | Path | None = None,
        *,
        pixels: DecodedFrames | None = None,
        memory_gb: float | None = None,
    ) -> None:
        config = policy.config
        device = torch.device(str(config.device))
        self._tables = _normalised_tables(frames, config, preprocessor)
        starts, ends = (np.asarray(frames.episodes[f"dataset_{side}_index"]) for side in ("from", "to"))
        spread = [torch.from_numpy(np.repeat(side, ends - starts)) for side in (starts, ends)]
        self.rows = _drawable(spread[1], getattr(config, "drop_n_last_frames", 0))
        self._starts, self._ends = (side.to(device) for side in spread)  # of each frame's episode
        self._ahead = torch.tensor(config.action_delta_indices, device=device)
        behind = config.observation_delta_indices
        self._behind = None if behind is None else torch.tensor(behind, device=device)
        self._tasks = _tasks(frames) if config.task_conditioning != "none" else None
        self._seen: TokenStore | PixelStore | None = None
        self.variants, cameras = 0, list(config.image_features)
        if cameras:
            _check_cameras(frames, cameras)
        if cameras and pixels is not None:
            _check_pixels(frames, cameras, pixels)
            self.variants = pixels.variants
            self._seen = PixelStore(pixels, cameras, device)
        elif cameras:
            opened = _open_cache(frames, policy, cache)
            self.variants = opened.variants
            self._seen = TokenStore(opened, cameras, device, memory_gb=memory_gb)

    def __len__(self) -> int:
        """Number of frames to train on."""
        return len(self.rows)

    def gather(self, rows: Tensor, variants: Tensor | None = None) -> Batch:
        """Gather the batch of some frames.

        Args:
            rows: Global frame indices [b].
            variants: For each of them the variant to see [b]; the clean frames when absent. All cameras and time steps
                of a sample show the same variant.

        Returns:
            States [b s]; per camera ``Tokens`` with classes [b c d] and patches [b n d], or images uint8 [b 3 h w]; all
            of these with the time axis [b t ...] of a policy that has one; action chunks [b chunk a] and
            ``action_is_pad`` [b chunk]; the task strings, where the policy reads them.
        """
        rows = rows.to(self._ends.device)
        starts, ends = self._starts[rows, None], self._ends[rows, None]
        ahead = rows[:, None] + self._ahead  # b chunk
        seen = rows  # b, or b t
        if self._behind is not None:
            seen = (rows[:, None] + self._behind).clamp(starts, ends - 1)
        batch: Batch = {key: table[seen] for key, table in self._tables.items() if key != ACTION}
        batch[ACTION] = self._tables[ACTION][ahead.clamp(starts, ends - 1)]
        batch["action_is_pad"] = (ahead < starts) | (ahead >= ends)
        if self._tasks is not None:
            batch["task"] = [self._tasks[row] for row in rows.tolist()]
        if self._seen is not None:
            if variants is not None:
                variants = variants.to(rows).view(-1, *[1] * (seen.ndim - 1)).expand_as(seen)
            batch |= self._seen.gather(seen, variants)
        return batch


def _normalised_tables(
    frames: DatasetFrames, config: PixioOptions, preprocessor: PolicyProcessorPipeline
) -> dict[str, Tensor]:
    """Whole columns [frames width], float32, through the policy's own preprocessor."""
    dataset = frames.dataset
    wanted = [key for key in (OBS_STATE, OBS_ENV_STATE) if key in (config.input_features or {})] + [ACTION]
    missing = [key for key in wanted if key not in dataset.features]
    if missing:
        raise DataError(f"{dataset.root} has no {missing[0]!r}; it has: {', '.join(dataset.features)}.")
    columns: Any = dataset.hf_dataset.with_format("numpy", columns=wanted)[:]
    tables = {key: torch.from_numpy(np.stack(list(columns[key]))).float().view(len(dataset), -1) for key in wanted}
    for key, table in tables.items():
        bad = (~table.isfinite()).any(dim=1).nonzero()
        if len(bad):
            raise DataError(
                f"{key!r} holds NaN or infinity in {len(bad)} frames of {dataset.root}, first in {bad[0].item()}."
            )
    processed = preprocessor(tables)
    return {key: processed[key] for key in wanted}


def _drawable(ends: Tensor, dropped: int) -> Tensor:
    """Rows of all frames but the last few of each episode: those that LeRobot's ``EpisodeAwareSampler`` draws."""
    rows = (torch.arange(len(ends)) < ends - dropped).nonzero()[:, 0]
    if not len(rows):
        raise DataError(
            f"drop_n_last_frames={dropped} leaves no frame to train on: no episode is longer than that. Lower it, or "
            "record longer episodes."
        )
    return rows


def _tasks(frames: DatasetFrames) -> list[str]:
    """Each frame's task."""
    names: Any = frames.dataset.meta.tasks
    return [names.index[index] for index in frames.dataset.hf_dataset.data.column("task_index").to_pylist()]


def _check_cameras(frames: DatasetFrames, cameras: Sequence[str]) -> None:
    for camera in cameras:
        if camera not in frames.cameras:
            there = ", ".join(frames.cameras) or "none"
            raise DataError(f"{frames.dataset.root} has no camera {camera!r}; its cameras are: {there}.")


def _check_pixels(frames: DatasetFrames, cameras: Sequence[str], pixels: DecodedFrames) -> None:
    for camera in cameras:
        for given in map(len, pixels.images.get(camera, ([],))):
            if given != len(frames):
                raise DataError(
                    f"{frames.dataset.root} has {len(frames)} frames, and pixels hold {given} of {camera!r}: give what "
                    "decode_frames makes of this data set."
                )


def _open_cache(frames: DatasetFrames, policy: PixioPolicy, path: str | Path | None) -> FeatureCache:
    """Open a cache after a check that it holds what the policy would see."""
    config = policy.config
    if config.train_encoder != "frozen":
        raise SettingError(
            f"train_encoder={config.train_encoder!r} changes the encoder while its cached features stay: train with "
            "`lerobot-train`, which runs the encoder at every step, or set train_encoder='frozen'."
        )
    if path is None:
        raise SettingError("A policy with eyes trains from a feature cache: build one with `pixio-cache build`.")
    assert policy.eyes is not None, "a policy with cameras has eyes"
    cache = FeatureCache.open(path, encoder=policy.eyes.encoder, source=frames)
    check_fit(cache, config)
    return cache
