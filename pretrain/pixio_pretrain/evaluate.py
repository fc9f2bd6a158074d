"""What the loss means: the same held-out samples at every look."""

from collections.abc import Iterator

import torch

from pixio_pretrain.data.samples import Batch
from pixio_pretrain.data.views import Views
from pixio_pretrain.objectives import Objective


def batches(views: Views, count: int) -> Iterator[Batch]:
    """Give ``count`` samples, in batches of which the last may be short."""
    for step in range(-(-count // views.batch_size)):
        rest = count - step * views.batch_size
        yield {key: value[:rest] for key, value in views[step].items()}


@torch.no_grad()
def held_out_loss(model: Objective, views: Views, count: int, autocast: torch.autocast) -> float:
    """Mean loss over ``count`` samples; the model's mode is left as it was."""
    training, total = model.training, 0.0
    model.eval()
    with autocast:
        for batch in batches(views, count):
            total += model(**batch).loss.item() * len(batch["images"])
    model.train(training)
    return total / count
