#!/usr/bin/env python
"""What exact k-NN costs beside the bare matrix product, over a million features.

Both make the same tiles in the same order, in turns; the bare product throws each tile away. CPU seconds of one thread,
so that a busy machine does not count. Peak memory is the process's, with the million features in it.
"""

import argparse
import json
import resource
import sys
import time
from functools import partial

import torch
from circumstances import circumstances
from torch.nn import functional as F
from turns import take_turns, timed

from pixio_pretrain.evaluation import neighbours


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="features of the bank")
    parser.add_argument("--width", type=int, default=192, help="numbers of each")
    parser.add_argument("--queries", type=int, default=512, help="images to classify")
    parser.add_argument("--neighbours", type=int, nargs="+", default=[10, 20, 200], help="numbers of neighbours")
    parser.add_argument("--rounds", type=int, default=3, help="the median of so many ratios is told")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    bank = torch.empty(options.rows, options.width)
    for part in bank.split(65536):
        part.copy_(F.normalize(torch.randn(part.shape), dim=1))
    queries = F.normalize(torch.randn(options.queries, options.width), dim=1)
    tile = torch.empty(neighbours.QUERIES, neighbours.ROWS)

    def bare() -> None:
        for part in queries.split(neighbours.QUERIES):
            for rows in bank.split(neighbours.ROWS):
                torch.mm(part, rows.T, out=tile[: len(part), : len(rows)])

    report = {**circumstances(), "torch": torch.__version__, **vars(options), "results": {}}
    cpu = partial(timed, clock=time.process_time)
    for count in options.neighbours:
        search = partial(neighbours.nearest, queries, bank, count)
        tasks = {"product": partial(cpu, bare), "search": partial(cpu, search)}
        seconds = zip(*take_turns(tasks, options.rounds, warm_up=False).values(), strict=True)
        ratio, theirs, ours = sorted((b / a, a, b) for a, b in seconds)[options.rounds // 2]
        report["results"][count] = {"product_s": theirs, "search_s": ours, "ratio": ratio}
    report["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    json.dump(report, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
