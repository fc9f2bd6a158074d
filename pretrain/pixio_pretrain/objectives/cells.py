"""The cells of two views' feature maps: where they lie in the image, which of them meet, how alike they are."""

import torch
from torch import Tensor
from torch.nn import functional as F

from pixio_robot.nn import no_autocast


def cell_centers(boxes: Tensor, grid: tuple[int, int]) -> Tensor:
    """Say where the cells of a view lie.

    Args:
        boxes: [b 4], left, top, right, bottom edge of each view in its image; a flipped view has left > right.
        grid: (rows, columns) of cells.

    Returns:
        Centres (x, y) in the units of the boxes, [b n 2], row-major.
    """
    rows, columns = grid
    v = (torch.arange(rows, device=boxes.device) + 0.5) / rows
    u = (torch.arange(columns, device=boxes.device) + 0.5) / columns
    places = torch.stack([u.repeat(rows), v.repeat_interleave(columns)], dim=-1)  # n 2
    start, end = boxes[:, None, :2], boxes[:, None, 2:]
    return start + places * (end - start)


def find_positives(boxes: Tensor, others: Tensor, grid: tuple[int, int], threshold: float) -> Tensor:
    """Find the cells of two views that show the same place (arXiv 2011.10043, section 3.1).

    Args:
        boxes: [b 4], where the one view lies; see ``cell_centers``.
        others: [b 4], where the other lies.
        grid: (rows, columns) of cells in both.
        threshold: Cells are positive when their centres are closer than this; distances are measured in diagonals of
            the larger of the two views' cells.

    Returns:
        bool [b n n], cells of the first view by cells of the second.
    """
    one, other = cell_centers(boxes, grid), cell_centers(others, grid)
    distances = (one[:, :, None] - other[:, None]).norm(dim=-1)  # b n n
    diagonal = torch.maximum(_cell_diagonal(boxes, grid), _cell_diagonal(others, grid))
    return distances / diagonal[:, None, None] < threshold


def find_shared(boxes: Tensor, others: Tensor, grid: tuple[int, int]) -> Tensor:
    """Find the cells of a view whose centres lie inside the other view: bool [b n]; arguments as above."""
    centers = cell_centers(boxes, grid)
    low = torch.minimum(others[:, None, :2], others[:, None, 2:])
    high = torch.maximum(others[:, None, :2], others[:, None, 2:])
    return ((low <= centers) & (centers <= high)).all(dim=-1)


def cosines(one: Tensor, other: Tensor) -> Tensor:
    """Compare every cell of one map with every cell of another: [b d h w] twice -> cosines [b n n].

    In float32, also under autocast: bfloat16 tells cosines near 1 apart only by steps of 0.004.
    """
    with no_autocast(one.device):
        one, other = (F.normalize(cells.float().flatten(2), dim=1) for cells in (one, other))
        return one.transpose(1, 2) @ other


def _cell_diagonal(boxes: Tensor, grid: tuple[int, int]) -> Tensor:
    rows, columns = grid
    return ((boxes[:, 2:] - boxes[:, :2]) / boxes.new_tensor([columns, rows])).norm(dim=-1)  # b
