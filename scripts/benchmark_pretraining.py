#!/usr/bin/env python
"""Pixio's pre-training step here against lightly's Pixio example, and seeing visible patches against seeing all.

All arms of an encoder run in turns, so that whatever else the machine does hits each of them. A step is forward,
backward and fused AdamW on one batch that stays in memory; the decoder is Pixio's own, 32 blocks of width 512. lightly
(PyPI: lightly, timm) is put together as in its example; it gets pixels that are normalised already.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
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
from turns import quiet_clock, ratio, take_turns, timed

from pixio_pretrain.heap import keep_freed_memory
from pixio_pretrain.objectives import create_objective
from pixio_pretrain.objectives.masked import MaskedAutoencoder
from pixio_pretrain.speed import matmul_ceiling
from pixio_robot.encoder import EncoderSpec
from pixio_robot.images import normalize
from pixio_robot.nn import Block

CONSOLE = Console()
RATIOS = [
    ("ours, bf16", "lightly, bf16"),
    ("ours, bf16", "lightly, float32"),
    ("encode visible patches", "encode all patches"),
]
"""Which arm is compared with which."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One thing to time.

    Attributes:
        name: What it is.
        step: Does it once.
        flops: Floating-point operations of a step, an addition and a multiplication counted as two.
    """

    name: str
    step: Callable[[], object]
    flops: int


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
    clock, ceiling = quiet_clock(options.device), matmul_ceiling(torch.device(options.device), torch.bfloat16)
    CONSOLE.print(f"bf16 matrix products: {ceiling / 1e12:.3g} TFLOP/s, the peak\n")
    results = []
    for name in options.encoders:
        torch.manual_seed(0)
        arms = make_arms(name, options)
        steps = {arm.name: partial(timed, arm.step, device=options.device, clock=clock) for arm in arms}
        seconds = take_turns(steps, options.rounds)
        show(name, arms, seconds, ceiling, options)
        results.append({"encoder": name, "arms": [[arm.name, arm.flops, seconds[arm.name]] for arm in arms]})
    figures = {
        **circumstances(options.device, threads=options.threads),
        "clock": clock.__name__,
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


def show(
    name: str, arms: Sequence[Arm], seconds: dict[str, list[float]], ceiling: float, options: argparse.Namespace
) -> None:
    """Print one encoder's figures."""
    table = Table(title=f"{name}, batches of {options.batch_size}, {options.rounds} rounds", title_justify="left")
    for column in ("", "images/s", "range", "GFLOP/image", "of peak"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for arm in arms:
        speeds = sorted(options.batch_size / spent for spent in seconds[arm.name])
        share = arm.flops / statistics.median(seconds[arm.name]) / ceiling
        spread = f"{speeds[0]:.3g} to {speeds[-1]:.3g}"
        work = f"{arm.flops / options.batch_size / 1e9:.0f}"
        table.add_row(arm.name, f"{statistics.median(speeds):.3g}", spread, work, f"{share:.0%}")
    CONSOLE.print(table)
    for fast, slow in RATIOS:
        if fast in seconds and slow in seconds:
            CONSOLE.print(f"{fast} / {slow}, rounds: [bold]{ratio(seconds[slow], seconds[fast])}[/]")
    CONSOLE.print()


if __name__ == "__main__":
    main()
