"""Pictures of a policy's encoder: what its patches say of some frames, and what its pre-training left to look at."""

import shutil
from pathlib import Path

import torch
from PIL import Image
from torch.nn.functional import interpolate

from lerobot_policy_pixio.frames import DatasetFrames
from lerobot_policy_pixio.keypoints_cli import draw_keypoints
from lerobot_policy_pixio.vision import Eyes
from pixio_pretrain.components import component_colors
from pixio_robot.checkpoints import SHIPPED
from pixio_robot.drafts import draft_of
from pixio_robot.images import resize

SIDE = 128
"""Pixels of a side of every tile."""


@torch.inference_mode()
def draw_patches(file: Path, eyes: Eyes, frames: DatasetFrames) -> None:
    """Draw two frames of each camera and, below each, the first three principal components of its patches as colours.

    Keypoints are marked on the frames instead.

    Args:
        file: A PNG.
        eyes: Of the policy, as it was trained.
        frames: The demonstrations that it was trained on.
    """
    rows = (len(frames) // 4, 3 * len(frames) // 4)
    cameras = [torch.cat([frames.read(camera, row, row + 1) for row in rows]) for camera in frames.cameras]
    if eyes.encoder.spec.family == "keypoints":
        with draft_of(file) as draft:
            draw_keypoints(eyes.encoder, cameras).save(draft, format="PNG")
        return
    seen = torch.cat([resize(pictures, (SIDE, SIDE)) for pictures in cameras])
    (tokens,) = eyes.encode([seen.to(next(eyes.parameters()).device)])
    colors = component_colors(tokens.patches.cpu()).unflatten(1, tokens.grid)
    said = interpolate(colors.movedim(-1, 1), size=(SIDE, SIDE), mode="nearest")
    tiles = torch.cat([seen, (255 * said).byte()], dim=2)  # n 3 2*side side
    with draft_of(file) as draft:
        Image.fromarray(torch.cat(list(tiles), dim=2).movedim(0, -1).numpy()).save(draft, format="PNG")


def copy_picture(file: Path, source: str) -> None:
    """Copy the picture that ``pixio-pretrain`` wrote beside an encoder, such as its reconstructions, if there is one.

    Args:
        file: A PNG.
        source: What ``load_encoder`` read.
    """
    shipped = source.removeprefix("shipped:")
    folder = Path(source).expanduser() if shipped == source else SHIPPED / shipped
    for picture in (folder / "picture.png", *folder.glob("*/picture.png")):
        if picture.is_file():
            with draft_of(file) as draft:
                shutil.copyfile(picture, draft)
            return
