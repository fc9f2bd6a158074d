"""Losses of depth and of points, all over the valid pixels of a batch.

Depth follows Pixio's evaluation (arXiv 2512.15715: the scale-invariant loss of arXiv 1406.2283, equation 4, under a
square root) with gradients matched at several scales (arXiv 1907.01341, equation 11, on log depth); points follow
MapAnything (arXiv 2509.13414: log-warped, under a robust loss).
"""

import torch
from torch import Tensor

SCALES = 4
VARIANCE_FOCUS = 0.5
CONFIDENCE = 0.2
"""Weight of log confidence: a pixel whose error is e is worth a confidence of 0.2 / e."""


def silog(prediction: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Root of mean(d^2) - 0.5 mean(d)^2 with d the difference of logarithms, over all valid pixels together.

    Args:
        prediction: Metres, above 0 [b h w].
        truth: Metres [b h w].
        valid: Bool [b h w].
    """
    d = _log_error(prediction, truth, valid)[valid]
    return (d.square().mean() - VARIANCE_FOCUS * d.mean().square()).clamp(min=1e-9).sqrt()


def gradient_matching(prediction: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Mean absolute difference of the gradients of log depth, over ``SCALES`` scales, each half as fine."""
    d, total = _log_error(prediction, truth, valid), prediction.new_zeros(())
    for scale in range(SCALES):
        step = 2**scale
        error, known = d[:, ::step, ::step], valid[:, ::step, ::step]
        for axis in (1, 2):
            n = error.shape[axis]
            if n < 2:
                continue
            both = known.narrow(axis, 0, n - 1) & known.narrow(axis, 1, n - 1)
            slope = (error.narrow(axis, 1, n - 1) - error.narrow(axis, 0, n - 1)).abs()
            total = total + (slope * both).sum() / both.sum().clamp(min=1)
    return total / SCALES


def beyond(prediction: Tensor, truth: Tensor, *, farthest: float) -> Tensor:
    """Mean log of how much too near the sky is put: what is farther than ``farthest`` has to be said to be at least so.

    Without it nothing is learnt of such pixels, and they float before the camera in a cloud.

    Args:
        prediction: Metres, above 0 [b h w].
        truth: Metres [b h w].
        farthest: Metres.
    """
    short = (farthest / prediction).log().relu()
    far = truth > farthest
    return torch.where(far, short, 0.0).sum() / far.sum().clamp(min=1)


def confidence_loss(confidence: Tensor, error: Tensor, valid: Tensor) -> Tensor:
    """Teach confidence c the size of errors e, as c * e - 0.2 log c, and nothing to what made the errors.

    Each pixel's part is divided by its own c, as a constant (arXiv 2203.09168, equation 6 with beta = 1): the best c is
    the same, 0.2 / e, but no gradient is larger than e. Without it, a pixel that is very sure and wrong once decides on
    the step of all that the head learns.

    Args:
        confidence: At least 1 [b h w].
        error: At least 0 [b h w]; takes no gradient.
        valid: Bool [b h w].
    """
    c, e = confidence[valid], error.detach()[valid]
    return ((c * e - CONFIDENCE * c.log()) / c.detach()).mean()


def robust(error: Tensor, *, c: float = 0.05) -> Tensor:
    """Barron's robust loss with alpha = 0.5 (arXiv 1701.03077, equation 1): quadratic near 0, a root far from it.

    Args:
        error: Any sign, any shape.
        c: Where it turns from the one to the other.
    """
    alpha = 0.5
    rest = abs(alpha - 2)
    return (rest / alpha) * (((error / c).square() / rest + 1) ** (alpha / 2) - 1)


def log_warp(points: Tensor) -> Tensor:
    """Shrink vectors [... 3] to log(1 + length), directions kept, so that near and far errors weigh alike."""
    length = points.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    return points / length * length.log1p()


def _log_error(prediction: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Difference of logarithms, 0 where nothing is known."""
    return torch.where(valid, prediction, 1.0).log() - torch.where(valid, truth, 1.0).log()
