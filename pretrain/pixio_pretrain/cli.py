"""The door: ``pixio-pretrain run=NAME data=PATH``, with every setting of ``RunConfig`` to override."""

import logging

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pixio_pretrain.config import RunConfig
from pixio_pretrain.objectives import OBJECTIVES
from pixio_pretrain.training import train
from pixio_robot.errors import PixioRobotError

logger = logging.getLogger(__name__)

ConfigStore.instance().store(name="schema", node=RunConfig)
for _name, _node in OBJECTIVES.items():
    ConfigStore.instance().store(group="objective", name=_name, node=_node)


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(settings: DictConfig) -> None:
    """Train as the settings say; what the user got wrong is one line, not a traceback."""
    try:
        # Hydra lets "+stepps=2" pass; merging into the bare schema refuses it.
        schema = OmegaConf.structured(RunConfig)
        schema.objective = OBJECTIVES[settings.objective.name]()
        config = OmegaConf.to_object(OmegaConf.merge(schema, OmegaConf.to_container(settings)))
        assert isinstance(config, RunConfig)  # the schema sees to it
        logger.info("The encoder is in %s.", train(config, command=_command()))
    except (PixioRobotError, OmegaConfBaseException) as error:
        raise SystemExit(f"pixio-pretrain: {error}") from error


def _command() -> str:
    """What was typed, less the places on this machine."""
    overrides = HydraConfig.get().overrides.task
    kept = [override for override in overrides if not override.startswith(("data=", "folder="))]
    return " ".join(["pixio-pretrain", *kept, "data=PATH"])
