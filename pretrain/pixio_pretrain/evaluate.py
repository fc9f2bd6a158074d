"""What the loss means: the same held-out crops and masks at every look, and two models that never saw a picture."""

from collections.abc import Iterator

import torch
from torch import Tensor

from pixio_pretrain.pixio import Pixio
from pixio_pretrain.views import Batch, Views
from pixio_robot.images import normalize


def batches(views: Views, count: int) -> Iterator[Batch]:
    """Give ``count`` views, in batches of which the last may be short."""
    for step in range(-(-count // views.batch_size)):
        rest = count - step * views.batch_size
        batch = views[step]
        yield Batch(batch.images[:rest], batch.noise[:rest])


@torch.no_grad()
def held_out_loss(model: Pixio, views: Views, count: int, autocast: torch.autocast) -> float:
    """Mean loss over ``count`` views; the model's mode is left as it was."""
    training, total = model.training, 0.0
    model.eval()
    with autocast:
        for images, noise in batches(views, count):
            total += model(images, noise=noise).loss.item() * len(images)
    model.train(training)
    return total / count


@torch.no_grad()
def mean_patch(model: Pixio, views: Views, count: int) -> Tensor:
    """Average the normalised patch at each place of the image, over ``count`` training views: [n p*p*3]."""
    total = torch.zeros(())
    for images, _ in batches(views, count):
        total = total + model.targets(normalize(images, torch.float32)).sum(dim=0)
    return total / count


@torch.no_grad()
def baseline_losses(model: Pixio, held_out: Views, count: int, *, patch: Tensor) -> dict[str, float]:
    """Loss of two predictions that look at no visible patch, on the views of ``held_out_loss``.

    Args:
        model: Says what the targets and the masks are; its weights do not count.
        held_out: Held-out views.
        count: How many of them.
        patch: From ``mean_patch``.

    Returns:
        "flat": each patch's own mean colour, which no model is told; "mean patch": the training set's mean patch at
        each place.
    """
    guesses = {"flat": torch.zeros_like(patch), "mean patch": patch}
    totals = dict.fromkeys(guesses, 0.0)
    for images, noise in batches(held_out, count):
        targets, mask = model.targets(normalize(images, torch.float32)), model.mask(images, noise)
        for name, guess in guesses.items():
            error = (targets - guess).square().mean(dim=-1)  # b n
            totals[name] += (error * mask).sum().item() / mask.sum().item() * len(images)
    return {name: total / count for name, total in totals.items()}
