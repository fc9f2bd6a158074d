"""What is measured of an image: how varied its colours are, how large it is, how hard it is to rebuild."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from pixio_pretrain.objectives import Objective
from pixio_pretrain.objectives.masked import MaskedAutoencoder
from pixio_pretrain.precision import autocast, resolve
from pixio_robot.errors import CheckpointError, SettingError
from pixio_robot.images import normalize

HISTOGRAM = "mean over red, green and blue of the Shannon entropy in bits of the 256 levels"


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """One row of a table of scores.

    Attributes:
        key: The sample.
        histogram_score: Entropy of its colours in bits, see ``histogram_score``.
        height: In pixels, as stored.
        width: In pixels, as stored.
        mae_loss: See ``ReconstructionLoss``; None if no checkpoint was given.
        problem: Why the sample cannot be decoded; the scores are None then.
    """

    key: str
    histogram_score: float | None = None
    height: int | None = None
    width: int | None = None
    mae_loss: float | None = None
    problem: str | None = None


MEASURES = ("histogram_score", "height", "width", "mae_loss")
"""The fields of ``Scores`` that are measured."""


def histogram_score(image: Image.Image) -> float:
    """Entropy of an image's colour histograms in bits: 0 for one flat colour, 8 for uniform noise.

    The mean over red, green and blue of ``-sum_k p_k log2(p_k)``, with ``p_k`` the share of the pixels at level ``k``
    of 256. Pillow gives the entropy of the three histograms laid end to end; since each of them holds a third of the
    counts, that is ours plus ``log2(3)``.
    """
    return max(0.0, image.convert("RGB").entropy() - math.log2(3))


class ReconstructionLoss:
    """The loss of a masked autoencoder on each image: low where the hidden is easily told from the visible.

    Every image is measured whole (its largest centred square) under the same masks, so that the loss of an image
    depends on nothing but the image, and images are compared without the luck of their masks.

    Args:
        objective: With trained weights, on its device.
        masks: Masks per image.
        seed: Fixes the masks.
        precision: See ``pixio_pretrain.precision.resolve``.

    Raises:
        SettingError: If the objective hides nothing, or the settings are out of range.
    """

    def __init__(self, objective: Objective, *, masks: int = 4, seed: int = 0, precision: str = "fp32") -> None:
        if not isinstance(objective, MaskedAutoencoder):
            raise SettingError(
                f"The objective {objective.config.name!r} rebuilds no images, so it gives no reconstruction loss; "
                "give the run folder of a masked one, such as pixio or mae."
            )
        if masks < 1:
            raise SettingError(f"masks must be at least 1, not {masks}.")
        self.objective = objective.eval()
        self.precision = resolve(precision, next(objective.parameters()).device)
        self._make = objective.samples(crop_scale=1.0)
        sources = [np.random.default_rng([seed, mask]) for mask in range(masks)]
        draws = [random.random(objective.mask_blocks, dtype=np.float32) for random in sources]
        self._noise = torch.from_numpy(np.stack(draws))  # masks, mask blocks
        self._identity = {"masks": masks, "seed": seed, "precision": self.precision}

    def describe(self) -> dict[str, object]:
        """What decides the losses, in JSON's types."""
        return {"encoder": self.objective.encoder.fingerprint, **self._identity}

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image]) -> list[float]:
        """Measure images of any size.

        Raises:
            CheckpointError: If a loss is not finite.
        """
        unused = np.random.default_rng(0)  # whole images are cut without chance, and the masks are ours
        crops = np.stack([self._make(image, unused)["images"] for image in images])
        device = next(self.objective.parameters()).device
        batch = torch.from_numpy(crops).to(device)  # b 3 h w
        targets = self.objective.targets(normalize(batch, torch.float32))
        total = torch.zeros(len(batch), device=device)
        for noise in self._noise.to(device):
            with autocast(self.precision, device):
                output = self.objective(batch, noise=noise.expand(len(batch), -1))
            error = (output.prediction.float() - targets).square().mean(dim=-1)  # b n
            total += (error * output.mask).sum(dim=1) / output.mask.sum(dim=1)
        losses = total / len(self._noise)
        if not losses.isfinite().all():
            raise CheckpointError("The checkpoint gives losses that are not finite: its run diverged; take another.")
        return losses.tolist()
