"""What the patches of a policy's encoder say of some frames, as a picture."""

from pathlib import Path

import torch
from PIL import Image
from torch.nn.functional import interpolate

from lerobot_policy_pixio.frames import DatasetFrames
from lerobot_policy_pixio.vision import Eyes
from pixio_pretrain.probe.components import component_colors
from pixio_robot.drafts import draft_of
from pixio_robot.images import resize

SIDE = 128
"""Pixels of a side of every tile."""


@torch.inference_mode()
def draw_patches(file: Path, eyes: Eyes, frames: DatasetFrames) -> None:
    """Draw two frames of each camera and, below each, the first three principal components of its patches as colours.

    Args:
        file: A PNG.
        eyes: Of the policy, as it was trained.
        frames: The demonstrations that it was trained on.
    """
    rows = (len(frames) // 4, 3 * len(frames) // 4)
    seen = torch.cat(
        [resize(frames.read(camera, row, row + 1), (SIDE, SIDE)) for camera in frames.cameras for row in rows]
    )
    (tokens,) = eyes.encode([seen.to(next(eyes.parameters()).device)])
    colors = component_colors(tokens.patches.cpu()).unflatten(1, tokens.grid)
    said = interpolate(colors.movedim(-1, 1), size=(SIDE, SIDE), mode="nearest")
    tiles = torch.cat([seen, (255 * said).byte()], dim=2)  # n 3 2*side side
    with draft_of(file) as draft:
        Image.fromarray(torch.cat(list(tiles), dim=2).movedim(0, -1).numpy()).save(draft, format="PNG")
