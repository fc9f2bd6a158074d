"""A figure of depth maps: image, truth, prediction, error."""

import importlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pixio_robot.drafts import draft_of
from pixio_robot.errors import DataError, SettingError
from pixio_robot.geometry.metrics import Maps, as_floats

_LARGEST_ERROR = 0.1  # metres, the end of the error's colours


def draw_depth(
    path: str | Path,
    images: Maps,
    truth: Maps,
    prediction: Maps,
    *,
    farthest: float,
    names: Sequence[str] | None = None,
) -> Path:
    """Draw a row for each image: the image, true depth, predicted depth, and the absolute error up to 10 cm.

    Args:
        path: A PNG, or whatever else matplotlib writes; it appears whole or not at all.
        images: RGB, uint8 [b h w 3].
        truth: Metres [b h w].
        prediction: Metres [b h w].
        farthest: Metres; the end of depth's colours. Farther pixels of the truth stay white in the error.
        names: Of the rows.

    Returns:
        The file.

    Raises:
        DataError: Shapes that do not fit together.
        SettingError: matplotlib is not installed.
    """
    try:
        figures = importlib.import_module("matplotlib.figure")  # an extra: a robot draws nothing
    except ImportError as error:
        raise SettingError("Figures need matplotlib: pip install matplotlib.") from error
    path, pictures = Path(path), np.asarray(images)
    true, predicted = as_floats(truth), as_floats(prediction)
    if true.shape != predicted.shape or pictures.shape != (*true.shape, 3):
        raise DataError(
            f"Images must be [b h w 3], depth [b h w], not {list(pictures.shape)}, {list(true.shape)} and "
            f"{list(predicted.shape)}."
        )
    figure = figures.Figure(figsize=(9.6, 2.4 * len(true) + 0.4), layout="constrained")
    axes = figure.subplots(len(true), 4, squeeze=False)
    error = np.where(true <= farthest, np.abs(predicted - true), np.nan)
    for row in range(len(true)):
        axes[row][0].imshow(pictures[row])
        for column, depth in ((1, true), (2, predicted)):
            shown = axes[row][column].imshow(depth[row], vmin=0, vmax=farthest, cmap="turbo")
        wrong = axes[row][3].imshow(error[row], vmin=0, vmax=_LARGEST_ERROR, cmap="magma")
        axes[row][0].set_ylabel(names[row] if names else "")
        figure.colorbar(shown, ax=axes[row][2], label="m")
        figure.colorbar(wrong, ax=axes[row][3], label="m")
    for cell in axes.flat:
        cell.set(xticks=[], yticks=[])
    for cell, title in zip(axes[0], ("image", "true depth", "predicted depth", "error"), strict=True):
        cell.set_title(title, fontsize=10)
    with draft_of(path) as draft:
        figure.savefig(draft, dpi=110, format=path.suffix.removeprefix("."))
    return path
