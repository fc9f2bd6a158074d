#!/usr/bin/env python
"""Which encoder, which policy? Encoders x tasks x policies x training seeds, with controls, on held-out scenes.

    scripts/run_benchmark.py tier=smoke                     everything once, in under 10 minutes on two cores
    scripts/run_benchmark.py tier=standard +arms.mae=PATH   a night; with one more encoder
    scripts/run_benchmark.py tier=ladder                    does pre-training pay, where small things matter?
    scripts/run_benchmark.py tier=cortex                    the protocol of CortexBench's Meta-World suite
    scripts/run_benchmark.py -m tier=standard launcher=slurm worker='range(16)'      jobs that share out the cells

A cell is one arm's policy on one task, of one training seed. A cell that is done is not done again: give the same
command again after a kill, or start it several times to share out the work. folder=FOLDER comes to hold every cell,
report.html and results.md.
"""

import os
import sys
from pathlib import Path

import hydra
from benchmark import manual
from benchmark.settings import Benchmark
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pixio_robot.errors import PixioRobotError

ConfigStore.instance().store(name="schema", node=Benchmark)
HERE = Path(__file__).parent.absolute()


@hydra.main(version_base="1.3", config_path="benchmark/conf", config_name="config")
def _run(settings: DictConfig) -> None:
    """Run, as the settings say."""
    from benchmark.running import run  # after --help; and worker processes import this file

    config = OmegaConf.to_object(settings)
    assert isinstance(config, Benchmark), "the schema sees to it"
    run(config, command=manual.command())


def main() -> None:
    """Read the command line and run; what the user got wrong is one line, not a traceback."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(manual.help_text(__doc__ or ""))
        return
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come here, instead of being printed
    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)  # for the jobs of a cluster
    try:
        _run()
    except (HydraException, OmegaConfBaseException, PixioRobotError) as error:
        raise SystemExit(f"run_benchmark: {manual.explain(error)}") from error


if __name__ == "__main__":
    main()
