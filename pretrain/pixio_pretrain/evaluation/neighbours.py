"""The nearest of a million features, exactly, in bounded memory."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from pixio_robot.errors import SettingError

QUERIES, ROWS = 256, 4096
"""Similarities are made in tiles of so many queries and rows of the bank: 4 MB, which a core's cache keeps."""

MEMBERS = 16
"""Columns of a tile, far from each other, of which only the greatest entry is looked at first."""

FIRST = 8
"""Tiles that are made at once in the beginning, to find out what is worth looking at."""


def nearest(queries: Tensor, bank: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Find the ``count`` rows of a bank with the greatest scalar product.

    The product of queries and bank is made tile by tile and never kept. Of each tile, the greatest of every group of
    columns is taken first, which costs one reading; only groups whose greatest exceeds what is known to be a lower
    bound of a query's ``count``-th best are looked into. The first such bound is the ``count``-th greatest group's
    greatest; the later ones are the ``count``-th best so far.

    Args:
        queries: [m d].
        bank: [n d], on the same device; any float type.
        count: At least 1, at most n.

    Returns:
        Similarities, descending, float32 [m count], and their rows, int64 [m count].

    Raises:
        SettingError: If ``count`` is out of range.
    """
    if not 1 <= count <= len(bank):
        raise SettingError(f"{count} neighbours of {len(bank)} cannot be found; choose from 1 to {len(bank)}.")
    parts = [_nearest(part.float(), bank, count) for part in queries.split(QUERIES)]
    return torch.cat([similarity for similarity, _ in parts]), torch.cat([rows for _, rows in parts])


class _Best:
    """The best entries so far of each of m queries, and those that were found since and not yet sorted in.

    Attributes:
        similarity: Of the best, descending [m count].
        rows: Theirs [m count].
        bound: What an entry must reach to be of interest [m].
    """

    def __init__(self, m: int, count: int, bound: Tensor) -> None:
        self.bound = bound
        self.similarity = bound.new_full((m, count), -torch.inf)
        self.rows = torch.zeros(m, count, dtype=torch.int64, device=bound.device)
        self.found: list[tuple[Tensor, Tensor, Tensor]] = []
        self.waiting = 0

    def add(self, query: Tensor, similarity: Tensor, row: Tensor) -> None:
        """Take note of entries [s]."""
        self.found.append((query, similarity, row))
        self.waiting += len(query)
        if self.waiting > self.similarity.numel():
            self.sort()

    def sort(self) -> None:
        """Sort in what waits."""
        query, similarity, row = (torch.cat(parts) for parts in zip(*self.found, strict=True))
        query, order = query.sort(stable=True)
        counts = torch.bincount(query, minlength=len(self.rows))
        place = torch.arange(len(query), device=query.device) - (counts.cumsum(0) - counts)[query]
        fresh = self.similarity.new_full((len(self.rows), int(counts.max())), -torch.inf)
        where = self.rows.new_zeros(fresh.shape)
        fresh[query, place], where[query, place] = similarity[order], row[order]
        count = self.similarity.shape[1]
        self.similarity, best = torch.cat([self.similarity, fresh], dim=1).topk(count, dim=1)
        self.rows = torch.cat([self.rows, where], dim=1).gather(1, best)
        self.bound = torch.maximum(self.bound, self.similarity[:, -1])
        self.found, self.waiting = [], 0


def _nearest(queries: Tensor, bank: Tensor, count: int) -> tuple[Tensor, Tensor]:
    first = queries @ bank[: FIRST * ROWS].to(queries.dtype).T
    greatest = _grouped(first).amax(dim=1)
    enough = greatest.shape[1] >= count
    bound = greatest.topk(count, dim=1).values[:, -1] if enough else greatest.new_full((len(queries),), -torch.inf)
    best = _Best(len(queries), count, bound)
    _search(first, 0, best)
    tile = queries.new_empty(len(queries), ROWS)
    for start in range(FIRST * ROWS, len(bank), ROWS):
        part = bank[start : start + ROWS].to(queries.dtype)
        if len(part) == ROWS:
            torch.mm(queries, part.T, out=tile)
        else:
            tile = queries @ part.T
        _search(tile, start, best)
    if best.found:
        best.sort()
    return best.similarity, best.rows


def _grouped(tile: Tensor) -> Tensor:
    """See a tile [m columns] as [m MEMBERS groups], so that maxima over members vectorise over groups."""
    rest = -tile.shape[1] % MEMBERS
    padded = F.pad(tile, (0, rest), value=-torch.inf) if rest else tile
    return padded.view(len(tile), MEMBERS, -1)


def _search(tile: Tensor, start: int, best: _Best) -> None:
    """Hand over the entries of a tile that are of interest; padding is never among the best, as there are enough."""
    grouped = _grouped(tile)
    bound = best.bound
    query, group = torch.nonzero(grouped.amax(dim=1) >= bound[:, None], as_tuple=True)
    members = grouped[query, :, group]  # s members
    entry, member = torch.nonzero(members >= bound[query, None], as_tuple=True)
    if len(entry):
        best.add(query[entry], members[entry, member], start + member * grouped.shape[2] + group[entry])


def vote(similarity: Tensor, labels: Tensor, classes: int, *, temperature: float) -> Tensor:
    """Add up what neighbours say: each votes for its class with weight exp(similarity / temperature).

    Weights are taken relative to the nearest neighbour's, which changes no order and keeps exp finite.

    Args:
        similarity: Of each query's neighbours [m k], descending.
        labels: Their classes [m k].
        classes: Number of classes.
        temperature: Above 0.

    Returns:
        Votes [m classes].
    """
    weights = ((similarity - similarity[:, :1]) / temperature).exp()
    return similarity.new_zeros(len(similarity), classes).scatter_add_(1, labels, weights)


def classify(
    queries: Tensor, bank: Tensor, labels: Tensor, *, neighbours: Sequence[int], classes: int, temperature: float
) -> Iterator[tuple[int, Tensor]]:
    """Rank classes by the votes of a bank's nearest features, for several numbers of neighbours at one search.

    Args:
        queries: [m d]; scaled to length 1 here.
        bank: [n d], of length 1.
        labels: Classes of the bank [n].
        neighbours: Numbers of neighbours.
        classes: Number of classes.
        temperature: Of the votes.

    Yields:
        A number of neighbours, and votes [m classes].
    """
    similarity, rows = nearest(F.normalize(queries.float(), dim=1), bank, max(neighbours))
    for count in neighbours:
        yield count, vote(similarity[:, :count], labels[rows[:, :count]], classes, temperature=temperature)
