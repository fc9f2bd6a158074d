"""``pixio-pretrain export RUN``: the encoders of a run as far as it is, while it goes or after it was stopped."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pixio_pretrain.trained import load_trained
from pixio_robot.errors import told_on_one_line


@told_on_one_line("pixio-pretrain export")
def main(argv: Sequence[str]) -> None:
    """Do what the words say; what the user got wrong is one line, not a traceback."""
    parser = argparse.ArgumentParser(
        prog="pixio-pretrain export",
        description="Write the encoders of a run's last checkpoint, for load_encoder and transformers. The run may "
        "still be going. A run that ended has written its encoders itself, with model card and measurements.",
    )
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--to", type=Path, help="where they go (default: RUN/exported/step-00001000, by its step)")
    words = parser.parse_args(argv)
    for place in export_encoders(words.run, words.to):
        sys.stdout.write(f"{place}\n")


def export_encoders(run: str | Path, to: str | Path | None = None) -> list[Path]:
    """Write the encoders of a run's last checkpoint.

    Args:
        run: Its folder.
        to: Comes to hold a folder per encoder; None for one inside the run's, named by the step.

    Returns:
        The encoders' folders, for ``load_encoder``.

    Raises:
        CheckpointError: As ``load_trained``.
    """
    objective, facts, place = load_trained(run)
    folder = Path(to) if to else place.parent.parent / "exported" / place.name
    encoders = objective.encoders
    for encoder in encoders.values():
        encoder.provenance |= {
            "licence": facts.get("licence", "unknown"),
            "weights": f"trained, step {facts['step']} of {facts['identity']['steps']}",
            "settings": {key: value for key, value in facts["identity"].items() if key != "frames"},
            "data": facts["identity"]["frames"],
        }
    objective.save_encoders(encoders, folder)
    return [folder / name for name in encoders]
