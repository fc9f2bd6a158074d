"""ACT and Diffusion Policy on pre-trained encoders, as a LeRobot plug-in.

LeRobot imports this package by its distribution name at the start of every command, and so learns the policy types
below. Policies, processors and trainers are imported only where they are used. A map:

- LeRobot's doors: ``configuration_``, ``modeling_`` and ``processor_pixio_act`` and ``_diffusion``. What both share is
  in ``modeling_pixio``: ``options`` (settings), ``vision`` (their eyes), ``trainable`` (what of them learns) and
  ``conditioning`` (how they are told a task).
- ``pixio-train`` is ``train_cli``: it builds or finds a cache, and calls ``training``, whose batches come from
  ``demonstrations`` (``token_store`` for features, ``decoded`` for pictures); ``run_folder``, ``logs`` and
  ``evaluation`` are what a run leaves.
- ``pixio-cache`` is ``cache_cli``: ``frames`` read a data set in order, ``augmentation`` makes variants of them, and
  ``cache_folders`` say where caches lie. ``cached_tokens`` and ``dataset_tables`` let ``lerobot-train`` read one.
- ``pixio-latency`` is ``latency``. ``acting`` makes a trained policy a function of observations.
"""

from lerobot_policy_pixio.configuration_pixio_act import PixioACTConfig
from lerobot_policy_pixio.configuration_pixio_diffusion import PixioDiffusionConfig

__all__ = ["PixioACTConfig", "PixioDiffusionConfig"]
