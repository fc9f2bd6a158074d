"""``pixio-keypoints``: learn from a data set where its things are, without labels, as an encoder for its policies."""

import argparse
import colorsys
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from lerobot_policy_pixio.frames import DatasetFrames
from pixio_robot import Encoder, learn_keypoints, load_encoder
from pixio_robot.descriptors import NUMBERS
from pixio_robot.drafts import draft_of
from pixio_robot.errors import told_on_one_line
from pixio_robot.images import resize
from pixio_robot.keypoints import COUNT

PICTURE = "keypoints.png"
SHOWN, ENLARGED, DOT = 6, 3, 3
"""Frames of each camera in the picture, pixels drawn for one, and of a keypoint's radius."""
GOLDEN = 5**0.5 / 2 - 0.5
"""Turns of the colour circle from one keypoint to the next, so that all colours differ."""


@told_on_one_line("pixio-keypoints")
def main() -> None:
    """Run the command."""
    options = _parse(sys.argv[1:])
    frames = DatasetFrames(options.dataset, options.cameras)
    folder = options.to or options.dataset.with_name(f"{options.dataset.name}.keypoints")
    pictures = [frames.spread(camera, options.pictures) for camera in frames.cameras]
    encoder = learn_keypoints(load_encoder(options.encoder), pictures, count=options.count, seed=options.seed)
    encoder.save_pretrained(folder)
    with draft_of(folder / PICTURE) as draft:
        draw_keypoints(encoder, pictures).save(draft, format="png")
    name, cameras = encoder.provenance["name"], ", ".join(frames.cameras)
    sys.stdout.write(f"{name}, learnt from {len(pictures[0])} pictures of each of {cameras}.\n")
    for group in encoder.provenance["cameras"]:
        if len(group) > 1:
            sys.stdout.write(f"{' and '.join(frames.cameras[one] for one in group)} look alike, and share theirs.\n")
    sys.stdout.write(f"Look at {folder / PICTURE}, and train: pixio-train --policy.encoder={folder} ...\n")


def draw_keypoints(encoder: Encoder, pictures: Sequence[Tensor]) -> Image.Image:
    """Mark the keypoints on a few pictures of each camera; each one has its colour.

    Args:
        encoder: The keypoints.
        pictures: Of each camera, uint8 [n 3 h w].

    Returns:
        A row for each camera.
    """
    side, count = encoder.spec.image_size, encoder.spec.width // NUMBERS
    shown = side * ENLARGED
    rows = []
    for some in pictures:
        chosen = resize(some[torch.linspace(0, len(some) - 1, min(SHOWN, len(some))).long()], (side, side))
        numbers = encoder(chosen).patches[:, 0].float().cpu()
        places, own = numbers[:, : 2 * count].unflatten(1, (count, 2)), numbers[:, 2 * count :] != 0
        row = Image.new("RGB", (len(chosen) * shown, shown))
        for number, (picture, there, seen) in enumerate(zip(chosen.cpu(), places, own, strict=True)):
            image = Image.fromarray(picture.permute(1, 2, 0).numpy()).resize((shown, shown))
            draw = ImageDraw.Draw(image)
            for keypoint in seen.nonzero().flatten().tolist():
                x, y = ((there[keypoint] + 1) / 2 * shown).tolist()
                color = tuple(round(255 * part) for part in colorsys.hsv_to_rgb(GOLDEN * keypoint % 1, 1, 1))
                draw.ellipse((x - DOT, y - DOT, x + DOT, y + DOT), fill=color, outline=(0, 0, 0))
            row.paste(image, (number * shown, 0))
        rows.append(row)
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)))
    for number, row in enumerate(rows):
        sheet.paste(row, (0, number * shown))
    return sheet


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="pixio-keypoints", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("dataset", type=Path, help="folder of a LeRobotDataset")
    parser.add_argument("--to", type=Path, help="where the encoder goes; DATASET.keypoints if left out")
    parser.add_argument("--encoder", default="shipped:descriptors", help="descriptors that they are read from")
    parser.add_argument("--count", type=int, default=COUNT, help="how many keypoints of each camera")
    parser.add_argument("--pictures", type=int, default=256, help="of each camera, evenly spread over the data set")
    parser.add_argument("--cameras", nargs="+", help="the data set's keys of cameras; all if left out")
    parser.add_argument("--seed", type=int, default=0, help="draws the descriptors that are chosen from")
    return parser.parse_args(words)
