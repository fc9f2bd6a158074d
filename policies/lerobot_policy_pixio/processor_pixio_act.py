"""Pre- and post-processing of ``pixio_act``: ACT's own, under the name that LeRobot looks for."""

from typing import Any

from lerobot.policies.act.processor_act import make_act_pre_post_processors
from lerobot.processor import PolicyProcessorPipeline

from lerobot_policy_pixio.configuration_pixio_act import PixioACTConfig


def make_pixio_act_pre_post_processors(
    config: PixioACTConfig, dataset_stats: dict[str, dict[str, Any]] | None = None
) -> tuple[PolicyProcessorPipeline, PolicyProcessorPipeline]:
    """Make the pipelines around a policy; if the settings name a cache, training reads its tokens.

    Args:
        config: The policy's settings.
        dataset_stats: What states and actions are normalised by.
    """
    preprocessor, postprocessor = make_act_pre_post_processors(config, dataset_stats)
    if config.cache is not None:
        # Here, since a robot needs neither the cache nor LeRobot's data sets.
        from lerobot_policy_pixio.cached_tokens import add_cached_tokens

        add_cached_tokens(preprocessor, config)
    return preprocessor, postprocessor
