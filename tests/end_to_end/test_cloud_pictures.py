"""What the cloud demo shows is what it was given: this script's functions, run without it."""

import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pixio_robot.errors import SettingError

PICTURES = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "cloud_pictures.py"))


def test_a_figure_shows_where_the_error_is(tmp_path: Path) -> None:
    images, truth = np.zeros((2, 16, 24, 3), np.uint8), torch.ones(2, 16, 24)
    wrong = truth.clone()
    wrong[:, :, 12:] += 0.1
    for name, depth in (("right", truth), ("wrong", wrong)):
        PICTURES["draw_depth"](tmp_path / f"{name}.png", images, truth, depth, farthest=2, names=["a", "b"])
    right, mistaken = (np.asarray(Image.open(tmp_path / f"{name}.png"), float) for name in ("right", "wrong"))
    assert right.shape == mistaken.shape
    columns = np.flatnonzero(np.abs(right - mistaken).sum(axis=(0, 2)))
    assert columns.min() > 0.4 * right.shape[1]  # image and truth are the same
    assert {path.name for path in tmp_path.iterdir()} == {"right.png", "wrong.png"}


class Recorder(ModuleType):
    """Stands in for rerun: notes what is logged where."""

    def __init__(self) -> None:
        super().__init__("rerun")
        self.logged: dict[str, Any] = {}

    def log(self, where: str, what: Any, **_: Any) -> None:
        self.logged.setdefault(where, []).append(what)

    def __getattr__(self, name: str) -> Any:
        if name == "ViewCoordinates":
            return type(name, (), {"RDF": "RDF", "RIGHT_HAND_Z_UP": "Z"})
        return lambda *given, **named: (name, given, named)


def show() -> None:
    pose, k = torch.eye(4), torch.diag(torch.tensor([50.0, 50, 1]))
    pose[:3, 3] = torch.tensor([1.0, 2, 3])
    image, cloud = torch.zeros(1, 3, 4, 6, dtype=torch.uint8), torch.zeros(5, 3)
    PICTURES["show"](["top"], image, k[None], pose[None], torch.ones(1, 4, 6), points=cloud, colors=cloud.byte())


def test_the_viewer_is_told_cameras_in_opencv_axes_and_metres(monkeypatch: pytest.MonkeyPatch) -> None:
    rerun = Recorder()
    monkeypatch.setitem(sys.modules, "rerun", rerun)
    show()
    found = {entry[0]: entry[2] for entries in rerun.logged.values() for entry in entries if isinstance(entry, tuple)}
    assert found["Pinhole"]["camera_xyz"] == "RDF"
    assert (found["Pinhole"]["width"], found["Pinhole"]["height"]) == (6, 4)
    np.testing.assert_array_equal(found["Transform3D"]["translation"], [1, 2, 3])
    assert found["DepthImage"]["meter"] == 1


def test_a_missing_viewer_names_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(SettingError, match="pip install rerun-sdk"):
        show()
