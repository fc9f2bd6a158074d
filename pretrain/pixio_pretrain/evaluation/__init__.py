"""How good an encoder is: the evaluations of Pixio, MAE and PixPro, for anything that ``load_encoder`` opens.

``cli`` calls ``job.evaluate``, which opens the encoder (``encoders``) and runs a row of ``tasks``. A task opens its
data set (``sets``), trains what it has to train (``loop.fit``), and gives an ``Outcome``, of which ``job`` makes a
record; ``report`` makes a page of records.

- Images with a class: ``knn`` (with ``neighbours``) and ``linear``, on stored ``features``; ``finetune``. ``views``
  cuts the images.
- Images with a map: ``depth`` and ``segmentation``, by heads of ``dense`` (``stages`` for convolutional networks).
- Images with boxes: ``detection``, by ``detector``, measured by ``average_precision``.
- Simulated frames: ``simulator``, by the linear read-outs of ``pixio_pretrain.probe`` or a small head.
"""

from pixio_pretrain.evaluation.job import EvalConfig, Outcome, evaluate, read_record
from pixio_pretrain.evaluation.loop import Recipe
from pixio_pretrain.evaluation.tasks import TASKS

__all__ = ["TASKS", "EvalConfig", "Outcome", "Recipe", "evaluate", "read_record"]
