"""Pictures for the model card: how the loss fell, and what the model makes of frames it never saw."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from einops import rearrange
from PIL import Image

from pixio_pretrain.pixio import Reconstruction


def draw_loss(file: Path, rows: Sequence[Mapping[str, float]], baselines: Mapping[str, float]) -> None:
    """Draw training and held-out loss over the steps, and the baselines as lines across.

    Args:
        file: A PNG.
        rows: The log's rows.
        baselines: Loss by name.
    """
    from matplotlib.figure import Figure  # slow to import; no pyplot, so no display and no global state

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([row["step"] for row in rows], [row["loss"] for row in rows], lw=0.6, color="0.7", label="training batch")
    measured = [row for row in rows if "held_out_loss" in row]
    axes.plot(
        [row["step"] for row in measured], [row["held_out_loss"] for row in measured], "o-", ms=3, label="held out"
    )
    for (name, loss), style in zip(baselines.items(), ("--", ":"), strict=True):
        axes.axhline(loss, ls=style, color="0.3", lw=1, label=f"held out, {name}")
    axes.set(xlabel="step", ylabel="normalised squared error on hidden patches", ylim=(0, None))
    axes.legend(frameon=False)
    figure.savefig(file, dpi=110)


def draw_reconstructions(file: Path, pictures: Reconstruction) -> None:
    """Lay pictures out as three rows: what the encoder saw, what the decoder made of it, the truth."""
    rows = [rearrange(row.cpu().numpy(), "b c h w -> h (b w) c") for row in pictures]
    Image.fromarray(np.concatenate(rows)).save(file, optimize=True)
