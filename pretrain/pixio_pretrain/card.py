"""What a finished run hands over: the encoder, and a model card with the evidence beside it."""

import datetime as dt
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pixio_pretrain.evaluate import baseline_losses, mean_patch
from pixio_pretrain.figures import draw_loss, draw_reconstructions
from pixio_pretrain.probe import ProbeResult, probe_task
from pixio_pretrain.run import Run
from pixio_robot.encoder import Encoder

PICTURES = 6

CARD = """---
license: {licence}
library_name: transformers
pipeline_tag: image-feature-extraction
tags: [pixio, robotics]
---

# {name}

A Pixio encoder (arXiv 2512.15715): {width} wide, {depth} blocks, {heads} heads, patches of {patch_size},
{class_tokens} class tokens, {image_size} px, {parameters:.1f} M parameters.

```python
from pixio_robot import load_encoder

tokens = load_encoder("<this folder>")(images)  # uint8 or float [0, 1], [b 3 h w]
```

`transformers.PixioModel.from_pretrained` reads the same folder.

## Training

| | |
|---|---|
| objective | {objective}: {mask_block} x {mask_block} blocks, {mask_percent:.0f} % hidden; \
decoder {decoder_width} wide, {decoder_depth} blocks, {decoder_heads} heads |
| frames | {frames} |
| seen | {steps} steps of {batch_size} crops = {views} views |
| optimiser | AdamW, peak learning rate {lr:.3g}, {warmup} steps of warm-up, cosine to 0 |
| time | {minutes:.0f} minutes, {precision}, {machine}, {date} |
| command | `{command}` |

## Measured on {held_out} held-out frames of {held_out_episodes} whole episodes

Loss: squared error on hidden patches, each normalised by its own mean and deviation; the same {held_out_views}
crops and masks throughout.

| prediction | loss |
|---|---|
| **this model, end of training** | **{loss:.3f}** |
| mean training patch at each place | {mean_patch:.3f} |
| each patch's own mean colour | {flat:.3f} |
{probe}
![Loss](loss_curve.png)

Seen, rebuilt, true (hidden patches carry their true mean and contrast, as the loss is blind to both):

![Reconstructions](reconstructions.png)
"""

PROBE = """
Which of {classes} tasks a frame shows, read linearly from the mean class token ({frames} frames, {episodes} episodes,
none trained on):

| features | right |
|---|---|
| **this encoder** | **{trained}** |
| the same sizes, random weights | {random} |
"""


def write_encoder(folder: Path, run: Run, *, command: str) -> None:
    """Measure a finished run and write encoder, model card and pictures; ``config.json`` comes last.

    Args:
        folder: Made if absent.
        run: At its last step.
        command: What the run was started with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run.model.eval()
    encoder, held_out = run.model.encoder, run.held_out_views
    count = run.config.views.held_out_views
    patch = mean_patch(run.model, run.train_views, 4 * count)
    baselines = baseline_losses(run.model, held_out, count, patch=patch)
    rows = run.rows()
    draw_loss(folder / "loss_curve.png", rows, baselines)
    random = np.random.default_rng(0)
    shown = random.permutation(held_out.indices)[:PICTURES]
    images, noise = held_out.load(shown, random)
    draw_reconstructions(folder / "reconstructions.png", run.model.reconstruct(images, noise=noise))
    measured = {"loss": rows[-1]["held_out_loss"], "mean_patch": baselines["mean patch"], "flat": baselines["flat"]}
    facts = _facts(run, command) | measured
    (folder / "README.md").write_text(CARD.format(**facts, probe=_probe(encoder, run)))
    encoder.provenance = {
        "name": facts["name"],
        "licence": run.config.licence,
        "weights": "trained",
        "command": command,
        "settings": run.config.identity(),
        "data": run.frames.describe(),
        "held_out": measured,
    }
    encoder.save_pretrained(folder)


def _facts(run: Run, command: str) -> dict[str, Any]:
    config, settings, spec = run.config, run.model.settings, run.model.settings.encoder
    described = run.frames.describe()
    names = [f"{len(run.frames)} frames", f"{len(np.unique(run.frames.episodes))} episodes"]
    names += [f"{len(run.frames.task_names)} tasks"] if run.frames.task_names else []
    for key in ("suite", "cameras", "render", "shift"):
        value = described.get(key)
        names += [f"{key} {' and '.join(value) if isinstance(value, list) else value}"] if value else []
    return {
        **{
            name: getattr(spec, name)
            for name in ("width", "depth", "heads", "patch_size", "class_tokens", "image_size")
        },
        **{name: getattr(settings, name) for name in ("mask_block", "decoder_width", "decoder_depth", "decoder_heads")},
        "name": config.objective.encoder,
        "licence": config.licence,
        "objective": config.objective.name,
        "parameters": sum(parameter.numel() for parameter in run.model.vit.parameters()) / 1e6,
        "mask_percent": 100 * settings.mask_ratio,
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
        "held_out": len(run.held_out_views.indices),
        "held_out_episodes": len(np.unique(run.frames.episodes[run.held_out_views.indices])),
        "held_out_views": config.views.held_out_views,
    }


def _probe(encoder: Encoder, run: Run) -> str:
    """The card's paragraph on the task probe; empty where frames do not say their task."""
    if run.frames.tasks is None:
        return ""
    random = Encoder(encoder.spec)
    random.vit.initialize(torch.Generator().manual_seed(0))
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
