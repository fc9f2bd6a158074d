"""Depth and points in files that other programs read: PLY for MeshLab, CloudCompare and Open3D, PNG for depth."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pixio_robot.drafts import draft_of
from pixio_robot.errors import DataError

Maps = NDArray[Any] | torch.Tensor

MILLIMETRES = 1000.0
FARTHEST = 65.535
"""Metres; the farthest that 16 bits of millimetres hold."""

_NAMES = {"f": ("float", "<f4"), "u": ("uchar", "u1")}


def write_ply(path: str | Path, points: Maps, *, colors: Maps | None = None, confidence: Maps | None = None) -> Path:
    """Write a cloud as binary PLY 1.0.

    Args:
        path: The file; it appears whole or not at all.
        points: [n 3], metres. Points that are not finite are left out.
        colors: uint8 [n 3], RGB.
        confidence: [n], written as the property "confidence".

    Returns:
        The file.

    Raises:
        DataError: Shapes that do not fit together, or no point that is finite.
    """
    path, xyz = Path(path), _array(points, np.float64)
    if xyz.ndim != 2 or xyz.shape[1] != 3:
        raise DataError(f"Points must be [n 3], not {list(xyz.shape)}.")
    kept = np.isfinite(xyz).all(axis=1)
    if not kept.any():
        raise DataError(f"None of {len(xyz)} points is finite, so there is no cloud to write.")
    fields = [(axis, "f", xyz[:, number]) for number, axis in enumerate("xyz")]
    if colors is not None:
        rgb = _same_length(colors, (len(xyz), 3), "colors")
        fields += [(name, "u", rgb[:, number]) for number, name in enumerate(("red", "green", "blue"))]
    if confidence is not None:
        fields.append(("confidence", "f", _same_length(confidence, (len(xyz),), "confidence")))
    rows = np.empty(int(kept.sum()), dtype=[(name, _NAMES[kind][1]) for name, kind, _ in fields])
    for name, _, values in fields:
        rows[name] = values[kept]
    properties = "".join(f"property {_NAMES[kind][0]} {name}\n" for name, kind, _ in fields)
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(rows)}\n{properties}end_header\n"
    with draft_of(path) as draft:
        draft.write_bytes(header.encode("ascii") + rows.tobytes())
    return path


def write_depth_png(path: str | Path, depth: Maps) -> Path:
    """Write depth [h w] in metres as a 16-bit PNG of millimetres, as ROS, Open3D and most cameras do.

    0 stands for unknown: what is not above 0, not finite, or farther than 65.535 m.
    """
    path, metres = Path(path), _array(depth, np.float64)
    if metres.ndim != 2:
        raise DataError(f"Depth must be [h w], not {list(metres.shape)}.")
    with np.errstate(invalid="ignore"):
        known = (metres > 0) & (metres <= FARTHEST)
    values = np.where(known, np.round(np.where(known, metres, 0) * MILLIMETRES), 0).astype(np.uint16)
    with draft_of(path) as draft:
        Image.fromarray(values).save(draft, format="PNG")
    return path


def _same_length(values: Maps, shape: tuple[int, ...], name: str) -> NDArray[Any]:
    array = _array(values)
    if array.shape != shape:
        raise DataError(f"{name} must be {list(shape)}, as there are points, not {list(array.shape)}.")
    return array


def _array(values: Maps, dtype: type[np.generic] | None = None) -> NDArray[Any]:
    return np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values, dtype)
