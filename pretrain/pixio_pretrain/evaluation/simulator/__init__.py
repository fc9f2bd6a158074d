"""Probes on simulated frames with exact answers: depth, parts of the scene, where things are, where the camera is.

The task ``simulator`` of ``pixio-eval``. ``task`` stores what the encoder says of every frame (``features``), learns
from the ``answers`` of the training set (by ``linear``, or by ``small`` with ``evaluation.loop``), and measures
(``measures``) and draws (``pictures``) every held-out set by itself. Regressions and intervals are those of
``pixio_pretrain.probe``.
"""
