import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from pixio_robot.errors import SettingError
from pixio_robot.geometry.perception import Calibration
from pixio_robot.geometry.viewer import show


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


def test_the_viewer_is_told_cameras_in_opencv_axes_and_metres(monkeypatch: pytest.MonkeyPatch) -> None:
    rerun = Recorder()
    monkeypatch.setitem(sys.modules, "rerun", rerun)
    pose, k = torch.eye(4), torch.diag(torch.tensor([50.0, 50, 1]))
    pose[:3, 3] = torch.tensor([1.0, 2, 3])
    show(
        {"top": torch.zeros(3, 4, 6, dtype=torch.uint8)},
        {"top": Calibration(k, pose)},
        depth={"top": torch.ones(4, 6)},
        points=torch.zeros(5, 3),
        colors=torch.zeros(5, 3, dtype=torch.uint8),
    )
    found = {entry[0]: entry[2] for entries in rerun.logged.values() for entry in entries if isinstance(entry, tuple)}
    assert found["Pinhole"]["camera_xyz"] == "RDF"
    assert (found["Pinhole"]["width"], found["Pinhole"]["height"]) == (6, 4)
    np.testing.assert_array_equal(found["Transform3D"]["translation"], [1, 2, 3])
    assert found["DepthImage"]["meter"] == 1


def test_a_missing_viewer_names_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(SettingError, match="pip install rerun-sdk"):
        show({}, {}, depth={}, points=torch.zeros(0, 3), colors=torch.zeros(0, 3))
