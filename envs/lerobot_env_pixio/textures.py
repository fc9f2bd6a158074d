"""Procedural textures for whatever stands still: tables, floors, walls."""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's names live in a compiled module that the type checker cannot see.)

from collections.abc import Callable

import mujoco
import numpy as np
from numpy.typing import NDArray

from lerobot_env_pixio.draws import Draws

Pattern = Callable[[NDArray[np.float64], NDArray[np.float64], np.random.Generator], NDArray[np.float64]]
"""From coordinates x and y, 0 to 1, to a share of the second colour, 0 to 1; all [h w]."""


def repaint(model: mujoco.MjModel, draws: Draws) -> list[int]:
    """Paint every texture of what stands still anew, in place; give their ids, for the renderers to fetch."""
    found = still_textures(model)
    for texture in found:
        height, width = model.tex_height[texture], model.tex_width[texture]
        pixels(model, texture)[:] = _paint(height, width, model.tex_nchannel[texture], draws)
    return found


def still_textures(model: mujoco.MjModel) -> list[int]:
    """Give the ids of the textures that bodies wear which are fixed to the world; the sky is none."""
    still = model.body_weldid[model.geom_bodyid] == 0
    materials = np.unique(model.geom_matid[still & (model.geom_matid >= 0)])
    textures = np.unique(model.mat_texid[materials])
    return [int(texture) for texture in textures if texture >= 0]


def pixels(model: mujoco.MjModel, texture: int) -> NDArray[np.uint8]:
    """Give a texture's pixels [h w c] in the model itself. A cube's six faces lie one below the other."""
    height, width, channels = model.tex_height[texture], model.tex_width[texture], model.tex_nchannel[texture]
    start = model.tex_adr[texture]
    return model.tex_data[start : start + height * width * channels].reshape(height, width, channels)


def _paint(height: int, width: int, channels: int, draws: Draws) -> NDArray[np.uint8]:
    """Paint a picture [h w c] of two random colours in a random pattern."""
    faces = max(height // width, 1)
    y, x = np.mgrid[0 : height // faces, 0:width].astype(np.float64)
    pattern = draws.choice(PATTERNS)
    share = pattern((x + 0.5) / width, (y + 0.5) * faces / height, draws.random)[..., None]
    first, second = (draws.uniform(0.1, 0.9, size=3) for _ in range(2))
    face = (first + share * (second - first)) * 255
    painted = np.full((height, width, channels), 255, np.uint8)
    painted[..., :3] = np.tile(face, (faces, 1, 1))[:height]
    return painted


def _checks(x: NDArray[np.float64], y: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float64]:
    count = random.integers(2, 9)
    return (np.floor(x * count) + np.floor(y * count)) % 2


def _stripes(x: NDArray[np.float64], y: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float64]:
    count, angle = random.integers(3, 12), random.uniform(0, np.pi)
    return 0.5 + 0.5 * np.sin(2 * np.pi * count * (x * np.cos(angle) + y * np.sin(angle)))


def _dots(x: NDArray[np.float64], y: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float64]:
    count, radius = random.integers(3, 9), random.uniform(0.2, 0.4)
    return (np.hypot(x * count % 1 - 0.5, y * count % 1 - 0.5) < radius).astype(np.float64)


def _grain(x: NDArray[np.float64], y: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float64]:
    """Wood: rings about a centre far away, bent by a slow wave."""
    center, rings = random.uniform(1, 3, size=2), random.uniform(6, 20)
    radius = np.hypot(x + center[0], 0.3 * y + center[1]) + 0.02 * np.sin(random.uniform(5, 15) * y)
    return rings * radius % 1


def _clouds(x: NDArray[np.float64], y: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float64]:
    """Smooth noise: waves of random direction, the finer the weaker."""
    total = np.zeros_like(x)
    for scale in (1, 2, 4, 8):
        angle, phase = random.uniform(0, 2 * np.pi, size=2)
        total += np.sin(2 * np.pi * scale * (x * np.cos(angle) + y * np.sin(angle)) + phase) / scale
    return (total - total.min()) / np.ptp(total)


def _bricks(x: NDArray[np.float64], y: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float64]:
    count = random.integers(3, 8)
    row = np.floor(y * 2 * count)
    mortar = ((x * count + row / 2) % 1 < 0.06) | (y * 2 * count % 1 < 0.12)
    return mortar.astype(np.float64)


PATTERNS: tuple[Pattern, ...] = (_checks, _stripes, _dots, _grain, _clouds, _bricks)
"""By turns of the splits: train has checks, dots and clouds, test stripes, wood and bricks."""
