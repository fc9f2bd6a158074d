"""What the loss means: the same held-out samples at every look."""

from collections.abc import Iterator, Sequence
from itertools import islice

import torch

from pixio_pretrain.data import Loader
from pixio_pretrain.data.samples import Batch
from pixio_pretrain.objectives import Objective


def take(loader: Loader, count: int) -> Iterator[Batch]:
    """Give the next ``count`` samples, in batches of which the last may be short."""
    for number, loaded in enumerate(islice(loader, -(-count // loader.batch_size))):
        rest = count - number * loader.batch_size
        yield {key: value[:rest] for key, value in loaded.batch.items()}


@torch.no_grad()
def mean_loss(model: Objective, batches: Sequence[Batch], autocast: torch.autocast) -> float:
    """Mean loss over all samples of some batches; the model's mode is left as it was."""
    training, total = model.training, 0.0
    model.eval()
    with autocast:
        for batch in batches:
            total += model(**batch).loss.item() * len(batch["images"])
    model.train(training)
    return total / sum(len(batch["images"]) for batch in batches)
