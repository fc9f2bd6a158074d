"""What cloud_demo.py draws: depth maps beside the truth."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from pixio_robot.drafts import draft_of

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
