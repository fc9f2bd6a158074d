"""A data set without its images: what ``lerobot-train`` needs when the images' features come from a cache."""

import json
import shutil
from pathlib import Path

from lerobot.datasets.dataset_tools import remove_feature

from lerobot_policy_pixio.frames import DatasetFrames
from pixio_robot.errors import DataError


def export_tables(frames: DatasetFrames, folder: Path) -> None:
    """Copy a data set's states, actions, tasks and statistics: same frames, same indices, nothing to decode.

    Args:
        frames: The data set.
        folder: The copy, itself a LeRobotDataset. It appears whole or not at all.

    Raises:
        DataError: If the folder exists, or the data set has no images to leave out.
    """
    dataset = frames.dataset
    if folder.exists():
        raise DataError(f"{folder} exists: delete it, or choose another folder.")
    if not dataset.meta.camera_keys:
        raise DataError(f"{dataset.root} has no images to leave out: train on it as it is.")
    scratch = folder.with_name(f".writing-{folder.name}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.parent.mkdir(parents=True, exist_ok=True)
    remove_feature(dataset, dataset.meta.camera_keys, output_dir=scratch, repo_id=f"local/{folder.name}")
    scratch.rename(folder)


def policy_inputs(frames: DatasetFrames) -> str:
    """The value of ``--policy.input_features`` with this data set's cameras, of which its tables know nothing."""
    features = {name: feature for name, feature in frames.policy_features.items() if name.startswith("observation.")}
    return json.dumps({name: {"type": kept.type.name, "shape": list(kept.shape)} for name, kept in features.items()})
