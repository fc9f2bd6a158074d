"""Pre- and post-processing of ``pixio_act``: ACT's own, under the name that LeRobot looks for."""

from lerobot.policies.act.processor_act import make_act_pre_post_processors as make_pixio_act_pre_post_processors

__all__ = ["make_pixio_act_pre_post_processors"]
