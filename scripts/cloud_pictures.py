"""What cloud_demo.py shows: a figure of depth maps, and the scene in rerun's viewer (https://rerun.io)."""

import importlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from pixio_robot.drafts import draft_of
from pixio_robot.errors import SettingError

_LARGEST_ERROR = 0.1  # metres, the end of the error's colours


def draw_depth(
    file: Path, images: NDArray[np.uint8], truth: Tensor, prediction: Tensor, *, farthest: float, names: Sequence[str]
) -> None:
    """Draw a row for each image: the image, true depth, predicted depth, and the absolute error up to 10 cm.

    Args:
        file: A PNG; it appears whole or not at all.
        images: RGB, uint8 [v h w 3].
        truth: Metres [v h w].
        prediction: Metres [v h w].
        farthest: Metres; the end of depth's colours. Farther pixels of the truth stay white in the error.
        names: Of the rows.
    """
    figure = Figure(figsize=(9.6, 2.4 * len(truth) + 0.4), layout="constrained")
    axes = figure.subplots(len(truth), 4, squeeze=False)
    for row, (image, true, predicted) in enumerate(zip(images, truth.numpy(), prediction.numpy(), strict=True)):
        error = np.where(true <= farthest, np.abs(predicted - true), np.nan)
        axes[row][0].imshow(image)
        axes[row][0].set_ylabel(names[row])
        axes[row][1].imshow(true, vmin=0, vmax=farthest, cmap="turbo")
        shown = axes[row][2].imshow(predicted, vmin=0, vmax=farthest, cmap="turbo")
        wrong = axes[row][3].imshow(error, vmin=0, vmax=_LARGEST_ERROR, cmap="magma")
        figure.colorbar(shown, ax=axes[row][2], label="m")
        figure.colorbar(wrong, ax=axes[row][3], label="m")
    for cell in axes.flat:
        cell.set(xticks=[], yticks=[])
    for cell, title in zip(axes[0], ("image", "true depth", "predicted depth", "error"), strict=True):
        cell.set_title(title, fontsize=10)
    with draft_of(file) as draft:
        figure.savefig(draft, dpi=110, format="png")


def show(
    names: Sequence[str],
    images: Tensor,
    intrinsics: Tensor,
    cam2base: Tensor,
    depth: Tensor,
    *,
    points: Tensor,
    colors: Tensor,
) -> None:
    """Log one moment to rerun, and open its viewer.

    Args:
        names: Of the cameras.
        images: Uint8 RGB [v 3 h w].
        intrinsics: [v 3 3], in pixels of these images.
        cam2base: Poses [v 4 4].
        depth: Metres [v h w].
        points: [n 3], in the base frame, metres.
        colors: Uint8 [n 3].

    Raises:
        SettingError: rerun is not installed.
    """
    try:
        rr = importlib.import_module("rerun")
    except ImportError as error:
        raise SettingError("The viewer needs rerun: pip install rerun-sdk. The cloud is in the PLY, too.") from error
    rr.init("pixio-robot", spawn=True)
    rr.log("base", rr.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
    rr.log("base/cloud", rr.Points3D(points.numpy(), colors=colors.numpy(), radii=0.002))
    for name, image, k, pose, metres in zip(names, images, intrinsics, cam2base, depth, strict=True):
        height, width = image.shape[-2:]
        rr.log(f"base/{name}", rr.Transform3D(translation=pose[:3, 3].numpy(), mat3x3=pose[:3, :3].numpy()))
        pinhole = {"image_from_camera": k.numpy(), "width": width, "height": height}
        rr.log(f"base/{name}", rr.Pinhole(**pinhole, camera_xyz=rr.ViewCoordinates.RDF))
        rr.log(f"base/{name}/image", rr.Image(image.permute(1, 2, 0).numpy()))
        rr.log(f"base/{name}/depth", rr.DepthImage(metres.numpy(), meter=1.0))
