"""ACT and Diffusion Policy on pre-trained encoders, as a LeRobot plug-in.

LeRobot imports this package by its distribution name at the start of every command, and so learns the policy types
below. Policies, processors and trainers are imported only where they are used.
"""

from lerobot_policy_pixio.configuration_pixio_act import PixioACTConfig
from lerobot_policy_pixio.configuration_pixio_diffusion import PixioDiffusionConfig

__all__ = ["PixioACTConfig", "PixioDiffusionConfig"]
