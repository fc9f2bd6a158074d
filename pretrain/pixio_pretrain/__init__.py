"""Pre-training of Pixio encoders on your own frames, and what such encoders are worth. A map, callers above callees.

Three commands, each with a door and settings of its own:

- ``cli`` is ``pixio-pretrain``: it reads settings (``config``, from ``conf``; ``manual`` is their help) and calls
  ``training``, ``plan``, ``export`` or ``curation``.
- ``evaluation.cli`` is ``pixio-eval``: any encoder by the published protocols; one command is one record.
- ``geometry.cli`` is ``pixio-geometry``: heads for depth and for several views, on a frozen encoder.

Training:

- ``training`` is the loop: it calls ``run`` to build or resume, ``held_out`` to measure, ``logs`` to tell, and ``card``
  (with ``figures``) to hand encoders over in the end.
- ``run`` puts a run together: ``data`` (from files to batches), ``curation`` (which of them to keep), ``objectives``
  (what is learnt), ``optim``, ``distributed`` (several processes), ``checkpoint``, and ``identity`` (what decides a
  result).
- ``trained`` opens the last checkpoint of a run for ``export`` and ``curation``.
- ``plan`` asks ``costs`` and ``speed`` what a run would take.
- ``precision`` and ``heap`` are settings of the machine.

What encoders are worth:

- ``probe`` is a library: linear read-outs, from ridge regression to intervals. ``scripts/compare_encoders.py`` compares
  trained encoders with it on still cameras, ``card`` asks it for one number, and ``evaluation.simulator`` takes its
  regressions and intervals.
- ``evaluation`` has a file for each task of ``pixio-eval``: on images that others labelled, and, in
  ``evaluation.simulator``, on simulated frames where cameras and scenes change.
- ``geometry`` trains on the simulated sets that ``evaluation.simulator`` measures on.
"""

from pixio_pretrain.config import RunConfig
from pixio_pretrain.objectives import create_objective
from pixio_pretrain.training import train

__all__ = ["RunConfig", "create_objective", "train"]
