"""Demonstrations in memory: states, actions and cached tokens as tensors, and batches gathered from them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.processor import PolicyProcessorPipeline
from lerobot.utils.constants import ACTION, OBS_ENV_STATE, OBS_STATE
from torch import Tensor

from lerobot_policy_pixio.configuration_pixio_act import PixioACTConfig
from lerobot_policy_pixio.frames import DatasetFrames
from lerobot_policy_pixio.modeling_pixio_act import Batch, PixioACTPolicy
from pixio_robot.cache import FeatureCache
from pixio_robot.errors import CacheError, DataError, SettingError
from pixio_robot.tokens import Tokens


class Demonstrations:
    """A data set's normalised states and actions, and its cached tokens, gathered by frame.

    Batches are what LeRobot's data loader and preprocessor would give, without their per-item work: action chunks
    repeat the last action beyond an episode's end and mark it in ``action_is_pad``.

    Args:
        frames: The data set.
        policy: The policy that will be trained; its configuration says which features it reads.
        preprocessor: The policy's own, from ``make_pre_post_processors``.
        cache: A feature cache of this data set and the policy's encoder; not needed by a blind policy.

    Raises:
        DataError: If the data set lacks a feature of the policy, or holds NaN.
        CacheError: If the cache is of another encoder, data set or setting.
    """

    def __init__(
        self,
        frames: DatasetFrames,
        policy: PixioACTPolicy,
        preprocessor: PolicyProcessorPipeline,
        cache: str | Path | None = None,
    ) -> None:
        config, dataset = policy.config, frames.dataset
        device = torch.device(str(config.device))
        self._tables = _normalised_tables(dataset, config, preprocessor)
        ends = np.asarray(frames.episodes["dataset_to_index"])
        starts = np.asarray(frames.episodes["dataset_from_index"])
        self._ends = torch.from_numpy(np.repeat(ends, ends - starts)).to(device)  # of each frame's episode
        self._chunk = torch.tensor(config.action_delta_indices, device=device)
        self._tokens = _load_tokens(frames, policy, cache, device)

    def __len__(self) -> int:
        """Number of frames."""
        return len(self._ends)

    def gather(self, rows: Tensor) -> Batch:
        """Gather the batch of some frames.

        Args:
            rows: Global frame indices [b].

        Returns:
            States [b s], action chunks [b chunk a], ``action_is_pad`` [b chunk], and ``Tokens`` per camera.
        """
        rows = rows.to(self._ends.device)
        ahead = rows[:, None] + self._chunk  # b chunk
        ends = self._ends[rows, None]
        batch: Batch = {key: table[rows] for key, table in self._tables.items() if key != ACTION}
        batch[ACTION] = self._tables[ACTION][ahead.minimum(ends - 1)]
        batch["action_is_pad"] = ahead >= ends
        for camera, tokens in self._tokens.items():
            batch[camera] = tokens.map(lambda x: x[rows].float())
        return batch


def _normalised_tables(
    dataset: LeRobotDataset, config: PixioACTConfig, preprocessor: PolicyProcessorPipeline
) -> dict[str, Tensor]:
    """Whole columns [frames width], float32, through the policy's own preprocessor."""
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


def _load_tokens(
    frames: DatasetFrames, policy: PixioACTPolicy, path: str | Path | None, device: torch.device
) -> dict[str, Tokens]:
    config = policy.config
    if not config.image_features:
        return {}
    if path is None:
        raise SettingError("A policy with eyes trains from a feature cache: build one with pixio_robot.build_cache.")
    for camera in config.image_features:
        if camera not in frames.cameras:
            there = ", ".join(frames.cameras) or "none"
            raise DataError(f"{frames.dataset.root} has no camera {camera!r}; its cameras are: {there}.")
    cache = FeatureCache.open(path, encoder=policy.encoder, source=frames)
    pooled, grid = cache.attributes["pooled_to"], config.grid
    if pooled is not None and not (config.patches == "none" or (config.patches == "average" and pooled == grid)):
        raise CacheError(
            f"{path} keeps patches averaged to {pooled} x {pooled}; pooling by {config.patches!r} to {grid} x {grid} "
            f"needs a cache built with grid=None{f' or grid={grid}' if config.patches == 'average' else ''}."
        )
    for camera in config.image_features:
        height, width, _ = frames.dataset.features[camera]["shape"]
        seen = tuple(cache.attributes["size"] or (height, width))
        if seen != policy.image_size:
            raise CacheError(
                f"{path} saw {camera!r} at {seen[0]} x {seen[1]} pixels, and the policy sees {policy.image_size[0]} x "
                f"{policy.image_size[1]}: build the cache with size={policy.image_size}, or set image_size."
            )
    return {camera: cache.load(camera).map(lambda x: x.to(device)) for camera in config.image_features}
