"""What the cloud demo draws is what it was given: this script's functions, run without it."""

import runpy
from pathlib import Path

import numpy as np
import torch
from PIL import Image

FIGURE = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "cloud_figure.py"))


def test_a_figure_shows_where_the_error_is(tmp_path: Path) -> None:
    images, truth = np.zeros((2, 16, 24, 3), np.uint8), torch.ones(2, 16, 24)
    wrong = truth.clone()
    wrong[:, :, 12:] += 0.1
    for name, depth in (("right", truth), ("wrong", wrong)):
        FIGURE["draw_depth"](tmp_path / f"{name}.png", images, truth, depth, farthest=2, names=["a", "b"])
    right, mistaken = (np.asarray(Image.open(tmp_path / f"{name}.png"), float) for name in ("right", "wrong"))
    assert right.shape == mistaken.shape
    columns = np.flatnonzero(np.abs(right - mistaken).sum(axis=(0, 2)))
    assert columns.min() > 0.4 * right.shape[1]  # image and truth are the same
    assert {path.name for path in tmp_path.iterdir()} == {"right.png", "wrong.png"}
