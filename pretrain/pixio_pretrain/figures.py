"""Pictures for the model card."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path


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
    trained = [row for row in rows if "loss" in row]  # a step that was left out has none
    axes.plot(
        [row["step"] for row in trained], [row["loss"] for row in trained], lw=0.6, color="0.7", label="training batch"
    )
    measured = [row for row in rows if "held_out_loss" in row]
    axes.plot(
        [row["step"] for row in measured], [row["held_out_loss"] for row in measured], "o-", ms=3, label="held out"
    )
    for (name, loss), style in zip(baselines.items(), cycle(("--", ":")), strict=False):
        axes.axhline(loss, ls=style, color="0.3", lw=1, label=f"held out, {name}")
    axes.set(xlabel="step", ylabel="loss")
    axes.legend(frameon=False)
    figure.savefig(file, dpi=110)
