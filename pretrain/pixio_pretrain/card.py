"""What a finished run hands over: its encoders, each with a model card and the evidence beside it."""

import datetime as dt
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from pixio_pretrain.data import Frames, Loader, Source, split_episodes
from pixio_pretrain.distributed import World
from pixio_pretrain.figures import draw_loss
from pixio_pretrain.held_out import mean_loss, take
from pixio_pretrain.logs import read_rows
from pixio_pretrain.objectives import Objective
from pixio_pretrain.probe import probe_task
from pixio_pretrain.run import Run
from pixio_robot.encoder import Encoder
from pixio_robot.errors import DataError
from pixio_robot.layouts import PLAIN
from pixio_robot.machine import device_name

logger = logging.getLogger(__name__)

PICTURES = 8
SHORT = 6

CARD = """---
license: {licence}
library_name: {library}
pipeline_tag: image-feature-extraction
tags: [{kind}, robotics]
---

# {name}

{parameters:.1f} M parameters: {sizes}.

```python
from pixio_robot import load_encoder

tokens = load_encoder("<this folder>")(images)  # uint8 or float [0, 1], [b 3 h w]
```

{transformers}

## Training

| | |
|---|---|
| objective | {objective} |
| images | {images} |
| seen | {steps} steps of {batch_size} = {views} views{left_out} |
| optimiser | {optimizer} |
| time | {minutes:.0f} minutes, {precision}, {machine}, {date} |
| command | `{command}` |

## Measured on held-out images

{share} of the data, whole episodes or shards of it, were never trained on. Loss: {loss_meaning}; the same
{held_out_views} views throughout.

| prediction | loss |
|---|---|
{losses}
{probe}
![Loss](loss_curve.png)
{picture}"""

THEIRS = "transformers reads the same folder."
OURS = "transformers does not read this folder: its convolutions are ours."

PROBE = """
Which of {classes} tasks a frame shows, read linearly from the mean class token, or the mean patch of an encoder without
any ({frames} frames, {episodes} episodes, none trained on):

| features | right |
|---|---|
| **this encoder** | **{trained}** |
| the same sizes, random weights | {random} |
"""


@torch.no_grad()
def write_encoders(run: Run, model: Objective, encoders: Mapping[str, Encoder], *, command: str) -> float:
    """Measure a finished run and write its encoders, and then, beside each, model card and pictures.

    Args:
        run: At its last step; its folder comes to hold one folder per encoder.
        model: The whole model, in evaluation mode.
        encoders: Its encoders, by name.
        command: What the run was started with.

    Returns:
        The held-out loss.
    """
    config, folder, rows = run.config, run.folder, read_rows(run.folder, run.step)
    loss = mean_loss(model, run.held_out, run.autocast())
    samples = model.samples(crop_scale=config.views.crop_scale)
    views = Loader(
        run.train,
        samples,
        batch_size=run.loader.batch_size,
        seed=config.seed,
        keep=run.loader.keep,
        buffer=run.loader.buffer,
        max_skipped=run.loader.skipped.limit,
    )
    baselines = model.baselines(take(views, 4 * config.views.held_out_views), run.held_out)
    facts = _facts(run, model, command) | {"losses": _losses(loss, baselines), "picture": ""}
    picture = model.picture({key: value[:PICTURES] for key, value in run.held_out[0].items()})
    if picture:
        facts["picture"] = f"\n{model.picture_meaning}\n\n![What the model makes of them](picture.png)\n"
    for encoder in encoders.values():
        encoder.provenance |= {
            "licence": config.licence,
            "weights": "trained",
            "command": command,
            "settings": config.identity(),
            "data": run.source.describe(),
            "held_out": {"loss": loss, **baselines},
        }
    model.save_encoders(encoders, folder)
    for name, encoder in encoders.items():
        draw_loss(folder / name / "loss_curve.png", rows, baselines)
        if picture:
            picture.save(folder / name / "picture.png", optimize=True)
        (folder / name / "README.md").write_text(
            CARD.format(**facts, **_describe(encoder), probe=_probe(encoder, name, model, run))
        )
    return loss


def _describe(encoder: Encoder) -> dict[str, Any]:
    ours = encoder.spec.stem != "patch" or encoder.spec.family in PLAIN.values()
    return {
        "name": encoder.provenance["name"],
        "sizes": ", ".join(f"{key} {value}" for key, value in asdict(encoder.spec).items()),
        "parameters": sum(parameter.numel() for parameter in encoder.parameters()) / 1e6,
        "library": "pixio-robot" if ours else "transformers",
        "transformers": OURS if ours else THEIRS,
    }


def _losses(loss: float, baselines: Mapping[str, float]) -> str:
    rows = [f"| **this model, end of training** | **{loss:.3f}** |"]
    return "\n".join(rows + [f"| {name} | {value:.3f} |" for name, value in baselines.items()])


def _facts(run: Run, model: Objective, command: str) -> dict[str, Any]:
    config, settings = run.config, asdict(run.config.objective)
    optimizer = config.optimizer
    return {
        "licence": config.licence,
        "kind": settings["name"],
        "objective": ", ".join(f"{key} {value}" for key, value in settings.items() if value is not None),
        "images": _images(run.source),
        "steps": run.step,
        "batch_size": config.batch_size,
        "views": run.step * config.batch_size,
        "optimizer": f"{optimizer.name}, peak learning rate {config.lr:.3g}, {optimizer.warmup} steps of warm-up, "
        f"cosine to {optimizer.min_lr:g}",
        "left_out": f"; {run.bad_steps} steps left out, as not finite" if run.bad_steps else "",
        "minutes": run.elapsed / 60,
        "precision": config.precision,
        "machine": _machine(run.world),
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "command": command,
        "loss_meaning": model.loss_meaning,
        "share": f"{100 * config.views.held_out:g} %",
        "held_out_views": config.views.held_out_views,
    }


def _images(source: Source) -> str:
    """What the data says of itself, as far as it is short, in one line."""
    facts = _short_facts(source.describe())
    if isinstance(source, Frames):
        facts += [f"{len(np.unique(source.episodes))} episodes"]
    return ", ".join(facts)


def _short_facts(described: Mapping[str, Any]) -> list[str]:
    facts = [f"{key} {value}" for key, value in described.items() if isinstance(value, str | int | float)]
    lists = {key: value for key, value in described.items() if isinstance(value, list) and key != "parts"}
    facts += [f"{key} {' and '.join(map(str, value))}" for key, value in lists.items() if len(value) <= SHORT]
    facts += [f"{len(value)} {key}" for key, value in lists.items() if len(value) > SHORT]
    return facts + [f"({', '.join(_short_facts(part))})" for part in described.get("parts", ())]


def _probe(encoder: Encoder, name: str, model: Objective, run: Run) -> str:
    """The card's paragraph on the task probe; empty where images do not say their task, or are too few to tell."""
    source = run.source
    if not isinstance(source, Frames) or source.tasks is None:
        return ""
    fresh = model.fresh()
    fresh.initialize(torch.Generator().manual_seed(0))
    split = split_episodes(source.episodes, run.config.views.held_out)
    candidates = {"trained": encoder, "random": fresh.encoders[name].to(run.world.device)}
    try:
        results = {title: probe_task(candidate, source, *split) for title, candidate in candidates.items()}
    except DataError as error:
        logger.warning("The model card of %s goes without the task probe: %s", name, error)
        return ""
    trained = results["trained"]
    return PROBE.format(classes=trained.classes, frames=trained.frames, episodes=trained.episodes, **results)


def _machine(world: World) -> str:
    if world.device.type == "cuda":
        return f"{world.size} x {device_name(world.device)}"
    kind = f"{device_name()} ({torch.backends.cpu.get_cpu_capability()})"
    processes = f"{world.size} processes with " if world.size > 1 else ""
    return f"{kind}, {processes}{torch.get_num_threads()} of {os.cpu_count()} cores, no GPU"
