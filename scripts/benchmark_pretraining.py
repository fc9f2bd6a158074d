#!/usr/bin/env python
"""Pixio's pre-training step here against lightly's Pixio example, and seeing visible patches against seeing all.

All arms of an encoder run in turns, so that whatever else the machine does hits each of them. A step is forward,
backward and fused AdamW on one batch that stays in memory; the decoder is Pixio's own, 32 blocks of width 512. lightly
(PyPI: lightly, timm) is put together as in its example; it gets pixels that are normalised already.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from circumstances import circumstances, versions, write_figures
from lightly.models import utils
from lightly.models.modules import MaskedVisionTransformerDecoderTIMM, MaskedVisionTransformerTIMM
from rich.console import Console
from rich.table import Table
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pixio_pretrain.heap import keep_freed_memory
from pixio_pretrain.objectives import create_objective
from pixio_pretrain.objectives.masked import MaskedAutoencoder
from pixio_robot.encoder import EncoderSpec
from pixio_robot.images import normalize
from pixio_robot.nn import Block

CONSOLE = Console()
RATIOS = [
    ("ours, bf16", "lightly, bf16", 1.3),
    ("ours, bf16", "lightly, float32", 2.5),
    ("encode visible patches", "encode all patches", 2.2),
]
"""Which arm must be how many times as fast as which."""


@dataclass(kw_only=True)
class Arm:
    """One thing to time.

    Attributes:
        name: What it is.
        step: Does it once.
        flops: Floating-point operations of a step, an addition and a multiplication counted as two.
        seconds: What each round took.
    """

    name: str
    step: Callable[[], object]
    flops: int
    seconds: list[float] = field(default_factory=list)


class LightlyPixio(nn.Module):
    """Pixio made of lightly's parts, as lightly's example does it: one class token and registers for the others."""

    def __init__(self, spec: EncoderSpec, *, width: int, depth: int, heads: int, block: int, ratio: float) -> None:
        super().__init__()
        vit = VisionTransformer(
            img_size=spec.image_size,
            patch_size=spec.patch_size,
            embed_dim=spec.width,
            depth=spec.depth,
            num_heads=spec.heads,
            reg_tokens=spec.class_tokens - 1,
            num_classes=0,
        )
        self.patch, self.block, self.ratio, self.prefix = spec.patch_size, block, ratio, spec.class_tokens
        self.backbone = MaskedVisionTransformerTIMM(vit=vit)
        self.embed = nn.Linear(spec.width, width)
        patches = vit.patch_embed.num_patches
        self.decoder = MaskedVisionTransformerDecoderTIMM(patches, width, depth, heads, num_prefix_tokens=self.prefix)
        self.predict = nn.Linear(width, spec.patch_size**2 * 3)

    def forward(self, pixels: Tensor) -> Tensor:
        """The loss on normalised images [b 3 h w]."""
        size = (len(pixels), self.backbone.sequence_length)
        keep, hide = utils.random_grid_token_mask(size, self.ratio, self.block, self.prefix, pixels.device)
        tokens = self.embed(self.backbone.encode(pixels, idx_keep=keep))
        hidden = utils.repeat_token(self.decoder.mask_token, size)
        tokens = utils.set_at_index(hidden, keep, tokens.type_as(hidden))
        decoded = self.decoder.decode(self.decoder.add_pos_embed(tokens))
        targets = utils.get_at_index(utils.patchify(pixels, self.patch), hide - self.prefix)
        predicted = self.predict(utils.get_at_index(decoded, hide))
        return nn.functional.mse_loss(predicted, utils.normalize_mean_var(targets))


def main() -> None:
    """Measure each encoder, print a table and write the figures."""
    options = parse_options()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as a run does
    ceiling = measure_ceiling(options.device)
    CONSOLE.print(f"bf16 matrix products: {ceiling / 1e12:.3g} TFLOP/s, the peak\n")
    results = []
    for name in options.encoders:
        torch.manual_seed(0)
        arms = make_arms(name, options)
        measure(arms, options.rounds, options.device)
        show(name, arms, ceiling, options)
        results.append({"encoder": name, "arms": [[arm.name, arm.flops, arm.seconds] for arm in arms]})
    figures = {
        **circumstances(options.device, threads=options.threads),
        "clock": clock(options.device).__name__,
        "ceiling": ceiling,
        "packages": versions("torch", "lightly", "timm"),
        "results": results,
    }
    write_figures(options.folder / "benchmark_pretraining.json", figures)


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoders", nargs="*", help="rows of ENCODERS; vits16 and vitb16, on cuda vitb16 to vith16")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--batch-size", type=int, help="images per step; 16, on cuda 128")
    parser.add_argument("--rounds", type=int, default=5, help="steps per arm, after one to warm up (default: 5)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument(
        "--compile", action="store_true", help="compile our transformer blocks; the warm-up takes a while"
    )
    parser.add_argument("--skip-lightly", action="store_true", help="time our own arms only")
    parser.add_argument("--folder", type=Path, default=Path("outputs"), help="for the figures (default: outputs)")
    options = parser.parse_args()
    gpu = options.device == "cuda"
    options.batch_size = options.batch_size or (128 if gpu else 16)
    sizes = ("vitb16", "vitl16", "vith16") if gpu else ("vits16", "vitb16")
    options.encoders = options.encoders or [f"pixio_{size}" for size in sizes]
    return options


def make_arms(name: str, options: argparse.Namespace) -> list[Arm]:
    """Everything that is timed of one encoder."""
    device, batch = options.device, options.batch_size
    ours = create_objective("pixio", encoder=name, seed=0).to(device)
    assert isinstance(ours, MaskedAutoencoder)
    size = ours.image_size
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, device=device)
    pixels = normalize(images, torch.float32)
    step = make_step(ours, lambda: ours(images).loss, bf16=True)
    arms = [Arm(name="ours, bf16", step=step, flops=count_flops(step))]
    if not options.skip_lightly:
        config = ours.config
        sizes = {"width": config.decoder_width, "depth": config.decoder_depth, "heads": config.decoder_heads}
        theirs = LightlyPixio(ours.spec, **sizes, block=config.mask_block, ratio=config.mask_ratio).to(device)
        for precision in ("bf16", "float32"):
            step = make_step(theirs, lambda: theirs(pixels), bf16=precision == "bf16")
            arms.append(Arm(name=f"lightly, {precision}", step=step, flops=arms[0].flops))  # the same work
    every = torch.rand(batch, ours.grid**2, device=device).argsort(dim=1)
    for what, seen in (("visible", every[:, : ours.visible_patches]), ("all", every)):
        step = make_step(ours, lambda seen=seen: ours.encode(pixels, seen).square().mean(), bf16=True, rate=None)
        arms.append(Arm(name=f"encode {what} patches", step=step, flops=count_flops(step)))
    if options.compile:
        for module in ours.modules():
            if isinstance(module, Block):
                module.compile()  # as a run with parallel.compile does
    return arms


def count_flops(step: Callable[[], object]) -> int:
    """Operations of a step."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def make_step(
    model: nn.Module, loss: Callable[[], Tensor], *, bf16: bool, rate: float | None = 1e-4
) -> Callable[[], None]:
    """Forward and backward, and AdamW where there is a learning rate."""
    kind = next(model.parameters()).device.type
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, fused=True) if rate else None

    def step() -> None:
        with torch.autocast(kind, torch.bfloat16, enabled=bf16):
            value = loss()
        value.backward()
        if optimizer:
            optimizer.step()
        model.zero_grad()

    return step


def clock(device: str) -> Callable[[], float]:
    """CPU seconds of one thread do not count what else runs; a GPU or several threads need the time on the wall."""
    return time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def timed(step: Callable[[], object], device: str) -> float:
    """Seconds that a step takes, the device's queue included."""
    now = clock(device)
    began = now()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return now() - began


def measure(arms: Sequence[Arm], rounds: int, device: str) -> None:
    """Run all arms in turns; the first turn warms up."""
    for number in range(rounds + 1):
        for arm in arms:
            seconds = timed(arm.step, device)
            if number:
                arm.seconds.append(seconds)


def measure_ceiling(device: str) -> float:
    """Operations per second of the fastest of some large bf16 matrix products."""
    side, times = (8192, 20) if device == "cuda" else (2048, 5)
    left = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    seconds = [timed(lambda: left @ left.T, device) for _ in range(times)]
    return 2 * side**3 / min(seconds)


def show(name: str, arms: Sequence[Arm], ceiling: float, options: argparse.Namespace) -> None:
    """Print one encoder's figures."""
    table = Table(title=f"{name}, batches of {options.batch_size}, {options.rounds} rounds", title_justify="left")
    for column in ("", "images/s", "range", "GFLOP/image", "of peak"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for arm in arms:
        speeds = sorted(options.batch_size / seconds for seconds in arm.seconds)
        share = arm.flops / statistics.median(arm.seconds) / ceiling
        spread = f"{speeds[0]:.3g} to {speeds[-1]:.3g}"
        work = f"{arm.flops / options.batch_size / 1e9:.0f}"
        table.add_row(arm.name, f"{statistics.median(speeds):.3g}", spread, work, f"{share:.0%}")
    CONSOLE.print(table)
    for line in compare(arms):
        CONSOLE.print(line)
    CONSOLE.print()


def compare(arms: Sequence[Arm]) -> Iterator[str]:
    """How many times as fast one arm is as another, round by round."""
    seconds = {arm.name: arm.seconds for arm in arms}
    for fast, slow, target in RATIOS:
        if fast in seconds and slow in seconds:
            ratios = sorted(b / a for a, b in zip(seconds[fast], seconds[slow], strict=True))
            middle = statistics.median(ratios)
            spread = f"rounds from {ratios[0]:.2f}x to {ratios[-1]:.2f}x"
            verdict = "reached" if middle >= target else "missed"
            yield f"{fast} / {slow}: [bold]{middle:.2f}x[/] ({spread}); target {target}x {verdict}"


if __name__ == "__main__":
    main()
