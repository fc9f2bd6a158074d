"""ACT on frozen Pixio features, as a LeRobot plug-in.

LeRobot imports this package by its distribution name at the start of every command, and so learns the policy types
below. Policies, processors and trainers are imported only where they are used.
"""

from lerobot_policy_pixio.configuration_pixio_act import PixioACTConfig

__all__ = ["PixioACTConfig"]
