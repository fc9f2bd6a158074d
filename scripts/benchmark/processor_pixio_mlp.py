"""Pre- and post-processing of ``pixio_mlp``, under the name that LeRobot looks for."""

from typing import Any

from lerobot.policies.act.processor_act import make_act_pre_post_processors
from lerobot.processor import PolicyProcessorPipeline

from benchmark.configuration_pixio_mlp import PixioMLPConfig


def make_pixio_mlp_pre_post_processors(
    config: PixioMLPConfig, dataset_stats: dict[str, dict[str, Any]] | None = None
) -> tuple[PolicyProcessorPipeline, PolicyProcessorPipeline]:
    """Make the pipelines around a policy: ACT's, which batch, move and normalise as the settings say.

    Args:
        config: The policy's settings.
        dataset_stats: What states and actions would be normalised by.
    """
    settings: Any = config
    return make_act_pre_post_processors(settings, dataset_stats)
