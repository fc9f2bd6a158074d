"""What features see, as colours: the directions in which patches differ most."""

import torch
from torch import Tensor


def component_colors(patches: Tensor) -> Tensor:
    """Give the first three principal components of patches as red, green and blue.

    Args:
        patches: [n p d], of pictures that are to be compared: they share the components.

    Returns:
        [n p 3], from 0 to 1 between the 2 % and 98 % quantiles of each component; 0.5 where nothing varies.
    """
    flat = patches.flatten(0, 1).float()
    flat = flat - flat.mean(dim=0)
    _, _, axes = torch.linalg.svd(flat, full_matrices=False)
    parts = torch.nn.functional.pad(flat @ axes[:3].T, (0, max(0, 3 - len(axes))))
    low, high = parts.quantile(0.02, dim=0), parts.quantile(0.98, dim=0)
    varies = high - low > 1e-6 * flat.abs().max()
    colors = torch.where(varies, (parts - low) / torch.where(varies, high - low, 1.0), 0.5)
    return colors.clamp(0, 1).view(*patches.shape[:2], 3)
