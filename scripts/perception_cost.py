#!/usr/bin/env python
"""Measure what depth and points cost on top of the encoder pass that a policy needs anyway.

Every round runs the bare pass and every addition once, in turns, so that a busy machine slows all of them alike; the
table shows the median over rounds of each round's quotient. CPU seconds of this process, or seconds on a GPU.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from pixio_robot.errors import told_on_one_line


@told_on_one_line("perception_cost")
def main() -> None:
    """Read the command line, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--encoder", default="pixio_vitb16", help="sizes, a row of ENCODERS; weights do not matter")
    parser.add_argument("--size", type=int, default=256, help="pixels of a side")
    parser.add_argument("--rounds", type=int, default=10, help="of each answer")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args()

    import torch
    from turns import take_turns, timed

    from pixio_robot import create_encoder
    from pixio_robot.geometry.cameras import transform, unproject
    from pixio_robot.geometry.depth import DepthModel, DepthSettings
    from pixio_robot.geometry.multiview import MultiViewModel
    from pixio_robot.geometry.taps import shared_blocks
    from pixio_robot.geometry.trunk import MultiViewSettings
    from pixio_robot.machine import machine_name

    torch.set_num_threads(args.threads)
    clock = time.process_time if args.device == "cpu" else time.perf_counter
    encoder = create_encoder(args.encoder, seed=0, image_size=args.size).to(args.device)
    image = torch.randint(0, 256, (1, 3, args.size, args.size), dtype=torch.uint8, device=args.device)
    k = torch.tensor([[args.size, 0, args.size / 2], [0, args.size, args.size / 2], [0, 0, 1.0]], device=args.device)
    pose, size = torch.eye(4, device=args.device)[None], (args.size, args.size)

    def answer(**settings: Any) -> Callable[[], object]:
        model = DepthModel(encoder, DepthSettings(rays=True, **settings)).eval().to(args.device)
        blocks = shared_blocks(encoder, model)  # the policy's last block, too

        def run() -> object:
            tokens = dict(zip(blocks, encoder.intermediate(image, blocks=blocks), strict=True))
            found = model.from_tokens([tokens[tap] for tap in model.taps], size, k[None], pose, images=image)
            return transform(pose, unproject(found.depth, k[None]))

        return run

    kinds = {
        "trunk and tiny heads": MultiViewSettings(),
        "trunk and tiny heads with detail": MultiViewSettings(detail=True),
        "the same after a tiny depth head with detail": MultiViewSettings(
            detail=True, alone=DepthSettings(coding="support", rays=True, detail=True)
        ),
    }
    trunks = {name: MultiViewModel(encoder, kind).eval().to(args.device) for name, kind in kinds.items()}
    two, k_two, apart = image.repeat(2, 1, 1, 1), k.expand(1, 2, 3, 3), pose.repeat(2, 1, 1)[None].clone()
    apart[0, 1, 0, 3] = 0.2

    bare, bare_two = "one view, encoder alone", "two views, encoder alone"
    runs: dict[str, Callable[[], object]] = {bare: lambda: encoder(image)}
    runs |= {f"one view, depth and points, {head}": answer(head=head) for head in ("linear", "tiny", "base", "paper")}
    runs["one view, depth and points, tiny with detail"] = answer(head="tiny", detail=True)
    runs[bare_two] = lambda: encoder(two)
    runs |= {f"two views, {name}": partial(trunk, two[None], k_two, apart) for name, trunk in trunks.items()}
    *_, knocked = trunks.values()
    runs["two views, where the second camera is"] = partial(knocked.correct_poses, two[None], k_two, apart)
    with torch.inference_mode():
        tasks = {name: partial(timed, run, device=args.device, clock=clock) for name, run in runs.items()}
        seconds = take_turns(tasks, args.rounds)
    where = f"{machine_name(args.device)}, {args.threads} thread(s)"
    print(f"{args.encoder}, {args.size} x {args.size}, batch 1, float32, {where}, torch {torch.__version__}\n")
    print("| answer | seconds, median | more than the bare pass |\n|---|---|---|")
    for name, spent in seconds.items():
        base = seconds[bare_two if name.startswith("two") else bare]
        more = statistics.median(one / other - 1 for one, other in zip(spent, base, strict=True))
        print(f"| {name} | {statistics.median(spent):.3f} | {more:+.1%} |")


if __name__ == "__main__":
    main()
