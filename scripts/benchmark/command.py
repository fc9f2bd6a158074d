"""From the command line to a run: hydra fills in the settings, and what the user got wrong is one line."""

import os
import sys
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from benchmark import usage
from benchmark.settings import Benchmark
from pixio_robot.errors import PixioRobotError

ConfigStore.instance().store(name="benchmark_schema", node=Benchmark)
OmegaConf.register_new_resolver("cores", lambda most: min(most, os.cpu_count() or 1), replace=True)
PROGRAM = "run_benchmark"
SCRIPTS = Path(__file__).parents[1].absolute()


@hydra.main(version_base="1.3", config_path=str(SCRIPTS / "benchmark" / "conf"), config_name="config")
def _run(settings: DictConfig) -> None:
    """Run, as the settings say."""
    from benchmark.running import run  # after --help
    from pixio_pretrain.cli import told

    with told(PROGRAM):
        config = OmegaConf.to_object(settings)
        assert isinstance(config, Benchmark), "the schema sees to it"
        run(config, command=usage.command())


def start(about: str) -> None:
    """Read the command line and run; ``about`` heads the help."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(usage.help_text(about))
        return
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come here, instead of being printed
    paths = [str(SCRIPTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)  # for the jobs of a cluster
    try:
        _run()
    except (HydraException, OmegaConfBaseException, PixioRobotError) as error:
        raise SystemExit(f"{PROGRAM}: {usage.explain(error)}") from error
