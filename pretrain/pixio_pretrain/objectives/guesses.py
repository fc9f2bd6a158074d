"""What it costs to predict patches without looking at visible ones."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from pixio_pretrain.data.samples import Batch

if TYPE_CHECKING:
    from pixio_pretrain.objectives.masked import MaskedAutoencoder


def guess_patches(model: "MaskedAutoencoder", train: Iterable[Batch], held_out: Iterable[Batch]) -> dict[str, float]:
    """Measure two guesses by a model's own loss; see ``MaskedAutoencoder.baselines``."""
    mean = torch.zeros((), device=model.mask_token.device)
    for number, batch in enumerate(train, start=1):
        patches = torch.stack([model.targets(view.pixels) for view in model.views(**batch)]).mean(dim=1)  # v n ppc
        mean = mean + (patches - mean) / number
    guesses = {"mean training patch at each place": mean, "each patch's own mean colour": torch.zeros_like(mean)}
    totals, count = dict.fromkeys(guesses, 0.0), 0
    for batch in held_out:
        views = model.views(**batch)
        mask = torch.stack([view.mask() for view in views])  # v b n
        targets = torch.stack([model.targets(view.pixels) for view in views])
        for name, guess in guesses.items():
            error = (targets - guess.unsqueeze(-3)).square().mean(dim=-1)  # v b n
            totals[name] += model.average(error, mask).item() * mask.shape[1]
        count += mask.shape[1]
    return {name: total / count for name, total in totals.items()}
