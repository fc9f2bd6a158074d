from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixio_robot.errors import DataError
from pixio_robot.geometry.clouds import write_depth_png, write_ply

random = np.random.default_rng(0)


def read_ply(path: Path) -> np.ndarray:
    """Read a binary PLY by its own header, as any other program would."""
    header, body = path.read_bytes().split(b"end_header\n")
    types = {"float": "<f4", "uchar": "u1"}
    lines = [line.split() for line in header.decode().splitlines()]
    assert lines[:2] == [["ply"], ["format", "binary_little_endian", "1.0"]]
    count = next(int(words[2]) for words in lines if words[0] == "element")
    fields = [(words[2], types[words[1]]) for words in lines if words[0] == "property"]
    rows = np.frombuffer(body, dtype=fields)
    assert len(rows) == count
    return rows


def test_a_cloud_is_read_back_with_colours_and_confidence(tmp_path: Path) -> None:
    points = random.normal(size=(50, 3)).astype(np.float32)
    colors, trust = random.integers(0, 256, size=(50, 3), dtype=np.uint8), random.uniform(1, 5, size=50)
    points[7] = np.nan
    rows = read_ply(write_ply(tmp_path / "a.ply", points, colors=colors, confidence=trust))
    kept = np.arange(50) != 7
    np.testing.assert_array_equal(np.stack([rows[axis] for axis in "xyz"], axis=1), points[kept])
    np.testing.assert_array_equal(np.stack([rows[name] for name in ("red", "green", "blue")], axis=1), colors[kept])
    np.testing.assert_allclose(rows["confidence"], trust[kept], rtol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["a.ply"]
    assert read_ply(write_ply(tmp_path / "b.ply", points)).dtype.names == ("x", "y", "z")


def test_clouds_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\[n 3\], not \[3, 4\]"):
        write_ply(tmp_path / "a.ply", np.zeros((3, 4)))
    with pytest.raises(DataError, match="None of 3"):
        write_ply(tmp_path / "a.ply", np.full((3, 3), np.inf))
    with pytest.raises(DataError, match=r"colors must be \[3, 3\]"):
        write_ply(tmp_path / "a.ply", np.zeros((3, 3)), colors=np.zeros((2, 3)))
    assert not list(tmp_path.iterdir())


def test_depth_is_kept_to_the_millimetre_and_unknown_depth_as_nothing(tmp_path: Path) -> None:
    depth = random.uniform(0.02, 60, size=(9, 12))
    depth[0, :4] = (np.nan, np.inf, -1, 70)
    with Image.open(write_depth_png(tmp_path / "depth.png", depth)) as picture:
        assert picture.mode == "I;16"
        found = np.asarray(picture) / 1000
    assert found.shape == (9, 12)
    np.testing.assert_array_equal(found[0, :4], 0)
    np.testing.assert_allclose(found[1:], depth[1:], atol=0.00051)
