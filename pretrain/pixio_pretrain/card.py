"""What a finished run hands over: its encoders, each with a model card and the evidence beside it."""

import datetime as dt
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pixio_pretrain.evaluate import batches
from pixio_pretrain.figures import draw_loss
from pixio_pretrain.probe import ProbeResult, probe_task
from pixio_pretrain.run import Run
from pixio_robot.encoder import Encoder

PICTURES = 8

CARD = """---
license: {licence}
library_name: transformers
pipeline_tag: image-feature-extraction
tags: [pixio, robotics]
---

# {name}

{parameters:.1f} M parameters: {sizes}.

```python
from pixio_robot import load_encoder

tokens = load_encoder("<this folder>")(images)  # uint8 or float [0, 1], [b 3 h w]
```

transformers reads the same folder.

## Training

| | |
|---|---|
| objective | {objective} |
| frames | {frames} |
| seen | {steps} steps of {batch_size} = {views} views |
| optimiser | AdamW, peak learning rate {lr:.3g}, {warmup} steps of warm-up, cosine to 0 |
| time | {minutes:.0f} minutes, {precision}, {machine}, {date} |
| command | `{command}` |

## Measured on {held_out} held-out frames of {held_out_episodes} whole episodes

Loss: {loss_meaning}; the same {held_out_views} views throughout.

| prediction | loss |
|---|---|
{losses}
{probe}
![Loss](loss_curve.png)
{picture}"""

PROBE = """
Which of {classes} tasks a frame shows, read linearly from the mean class token ({frames} frames, {episodes} episodes,
none trained on):

| features | right |
|---|---|
| **this encoder** | **{trained}** |
| the same sizes, random weights | {random} |
"""


def write_encoders(folder: Path, run: Run, *, command: str) -> None:
    """Measure a finished run and write each encoder with model card and pictures; ``config.json`` comes last.

    Args:
        folder: Comes to hold one folder per encoder.
        run: At its last step.
        command: What the run was started with.
    """
    run.model.eval()
    config, rows = run.config, run.rows()
    count = config.views.held_out_views
    with torch.no_grad():
        baselines = run.model.baselines(batches(run.train_views, 4 * count), batches(run.held_out_views, count))
    loss = rows[-1]["held_out_loss"]
    facts = _facts(run, command) | {"losses": _losses(loss, baselines)}
    random = np.random.default_rng(0)
    shown = run.held_out_views.load(random.permutation(run.held_out_views.indices)[:PICTURES], random)
    picture = run.model.picture(shown)
    for name, encoder in run.model.encoders.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        draw_loss(folder / name / "loss_curve.png", rows, baselines)
        facts["picture"] = ""
        if picture:
            picture.save(folder / name / "reconstructions.png", optimize=True)
            facts["picture"] = f"\n{run.model.picture_meaning}\n\n![Reconstructions](reconstructions.png)\n"
        (folder / name / "README.md").write_text(CARD.format(**facts, **_describe(encoder), probe=_probe(encoder, run)))
        encoder.provenance |= {
            "licence": config.licence,
            "weights": "trained",
            "command": command,
            "settings": config.identity(),
            "data": run.frames.describe(),
            "held_out": {"loss": loss, **baselines},
        }
        encoder.save_pretrained(folder / name)


def _describe(encoder: Encoder) -> dict[str, Any]:
    return {
        "name": encoder.provenance["name"],
        "sizes": ", ".join(f"{key} {value}" for key, value in asdict(encoder.spec).items()),
        "parameters": sum(parameter.numel() for parameter in encoder.parameters()) / 1e6,
    }


def _losses(loss: float, baselines: Mapping[str, float]) -> str:
    rows = [f"| **this model, end of training** | **{loss:.3f}** |"]
    return "\n".join(rows + [f"| {name} | {value:.3f} |" for name, value in baselines.items()])


def _facts(run: Run, command: str) -> dict[str, Any]:
    config, settings = run.config, asdict(run.config.objective)
    described = run.frames.describe()
    names = [f"{len(run.frames)} frames", f"{len(np.unique(run.frames.episodes))} episodes"]
    names += [f"{len(run.frames.task_names)} tasks"] if run.frames.task_names else []
    for key in ("suite", "cameras", "render", "shift"):
        value = described.get(key)
        names += [f"{key} {' and '.join(value) if isinstance(value, list) else value}"] if value else []
    return {
        "licence": config.licence,
        "objective": ", ".join(f"{key} {value}" for key, value in settings.items() if value is not None),
        "frames": ", ".join(names),
        "steps": run.step,
        "batch_size": config.batch_size,
        "views": run.step * config.batch_size,
        "lr": config.lr,
        "warmup": config.optimizer.warmup,
        "minutes": run.elapsed / 60,
        "precision": config.precision,
        "machine": _machine(config.device),
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "command": command,
        "loss_meaning": run.model.loss_meaning,
        "held_out": len(run.held_out_views.indices),
        "held_out_episodes": len(np.unique(run.frames.episodes[run.held_out_views.indices])),
        "held_out_views": config.views.held_out_views,
    }


def _probe(encoder: Encoder, run: Run) -> str:
    """The card's paragraph on the task probe; empty where frames do not say their task."""
    if run.frames.tasks is None:
        return ""
    random = Encoder(encoder.spec)
    random.backbone.initialize(torch.Generator().manual_seed(0))
    results: dict[str, ProbeResult] = {}
    for name, candidate in (("trained", encoder), ("random", random.to(run.config.device))):
        results[name] = probe_task(candidate, run.frames, run.train_views.indices, run.held_out_views.indices)
    trained = results["trained"]
    return PROBE.format(classes=trained.classes, frames=trained.frames, episodes=trained.episodes, **results)


def _machine(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    kind = f"{models[0] if models else platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"
    return f"{kind}, {torch.get_num_threads()} of {len(models) or os.cpu_count()} cores, no GPU"
