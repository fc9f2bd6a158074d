"""How good an encoder is: the evaluations of Pixio, MAE and PixPro, for anything that ``load_encoder`` opens."""

from pixio_pretrain.evaluation.job import EvalConfig, Outcome, evaluate, read_record
from pixio_pretrain.evaluation.loop import Recipe
from pixio_pretrain.evaluation.tasks import TASKS

__all__ = ["TASKS", "EvalConfig", "Outcome", "Recipe", "evaluate", "read_record"]
