"""Two simulated cameras, one coloured cloud: whatever model is given, files and figures appear."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pixio_robot import load_encoder
from pixio_robot.geometry.depth import DepthModel, DepthSettings
from pixio_robot.geometry.multiview import MultiViewModel
from pixio_robot.geometry.trunk import MultiViewSettings

SCRIPT = Path(__file__).parents[2] / "scripts" / "cloud_demo.py"
SETTINGS = DepthSettings(coding="support", support_heights=(0.0, -0.913), max_depth=4.0, rays=True, detail=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["depth", "views"])
def test_a_cloud_is_made_by_either_kind_of_model(tmp_path: Path, kind: str) -> None:
    encoder = load_encoder("shipped:pixio_vitt16")
    torch.manual_seed(0)
    model = DepthModel(encoder, SETTINGS)
    torch.nn.init.zeros_(model.head.out.weight)
    assert model.head.out.bias is not None
    with torch.no_grad():
        model.head.out.bias.copy_(torch.tensor([3.0, 0, 40, -40]))  # all is table, and far away where none can be
    if kind == "views":
        model = MultiViewModel(encoder, MultiViewSettings(), depth_head=model)
    model.save_pretrained(tmp_path / "model")
    command = [sys.executable, str(SCRIPT), str(tmp_path / "model"), str(tmp_path / "cloud"), "--steps", "2"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert said.startswith("2 cameras (corner2, ")
    head, _, body = (tmp_path / "cloud" / "cloud.ply").read_bytes().partition(b"end_header\n")
    count = int(head.partition(b"element vertex ")[2].split()[0])
    heights = np.frombuffer(body, np.dtype([("xyz", "<f4", 3), ("rest", f"V{len(body) // count - 12}")]))["xyz"][:, 2]
    assert len(heights) == count > 1000
    np.testing.assert_allclose(heights, 0, atol=2e-3)  # so all that it shows lies on the table
    with Image.open(tmp_path / "cloud" / "corner2.png") as depth:
        assert depth.size == (128, 128)
        assert np.asarray(depth).max() > 500
    assert (tmp_path / "cloud" / "depth.png").is_file()
    assert "median_cm" in said
    knocked = subprocess.run([*command, "--knock", "10", "0.03"], check=False, capture_output=True, text=True)
    if kind == "views":
        assert " was knocked, and is corrected from " in knocked.stdout
    else:
        assert knocked.stderr.startswith("cloud_demo: ")
        assert "--knock takes several views" in knocked.stderr
