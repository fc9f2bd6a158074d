#!/usr/bin/env python
"""Which encoder, which policy? Encoders x tasks x policies x training seeds, with controls, on held-out scenes.

    scripts/run_benchmark.py tier=quickstart                from rendered pixels to a measured policy: make quickstart
    scripts/run_benchmark.py tier=smoke                     everything once, in under 10 minutes on two cores
    scripts/run_benchmark.py tier=standard +arms.mine=PATH  a night; with one more encoder
    scripts/run_benchmark.py tier=ladder                    does pre-training pay, where small things matter?
    scripts/run_benchmark.py tier=cortex                    the protocol of CortexBench's Meta-World suite
    scripts/run_benchmark.py -m tier=standard launcher=slurm worker='range(16)'      jobs that share out the cells

A cell is one arm's policy on one task, of one training seed. A cell that is done is not done again: give the same
command again after a kill, or start it several times to share out the work. folder=FOLDER comes to hold every cell,
report.html and results.md.
"""


def main() -> None:
    """Run. Imports wait until then, so that --help is quick."""
    from benchmark.command import start

    start(__doc__ or "")


if __name__ == "__main__":
    main()
