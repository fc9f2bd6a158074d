#!/usr/bin/env python
"""Copy a trained encoder into the package: weights in half precision, its model card and pictures beside them.

python scripts/ship_encoder.py outputs/pretrain/vitt16_metaworld/encoder --note "frames rendered by `...`"
"""

import argparse
import shutil
from pathlib import Path

import torch

from pixio_robot import load_encoder
from pixio_robot.checkpoints import SHIPPED
from pixio_robot.errors import told_on_one_line

CARD = "README.md"


def ship(source: Path, name: str, *, notes: list[str]) -> Path:
    """Write ``pixio_robot/shipped/NAME``; loading "shipped:NAME" then finds it.

    Args:
        source: An encoder folder that ``pixio-pretrain`` wrote.
        name: What it is shipped as.
        notes: Sentences for the card, below the sizes.
    """
    folder = SHIPPED / name
    encoder = load_encoder(source)
    encoder.save_pretrained(folder, dtype=torch.float16)
    card = (source / CARD).read_text().replace("<this folder>", f"shipped:{name}")
    head, rest = card.split("\n## Training\n", 1)
    notes = ["Weights are stored in float16.", *notes]
    (folder / CARD).write_text(f"{head}\n{' '.join(notes)}\n\n## Training\n{rest}")
    for picture in source.glob("*.png"):
        shutil.copy(picture, folder)
    return folder


@told_on_one_line("ship_encoder")
def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="encoder folder of a finished run")
    parser.add_argument("--name", help="what it is shipped as; the name in its config.json if left out")
    parser.add_argument("--note", action="append", default=[], help="a sentence for the card; may be repeated")
    options = parser.parse_args()
    name = options.name or load_encoder(options.source).provenance["name"]
    folder = ship(options.source, name, notes=options.note)
    size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    print(f"{folder}: {size:.1f} MB, load_encoder('shipped:{name}')")


if __name__ == "__main__":
    main()
