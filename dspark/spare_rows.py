"""Rows of a batch in one tensor, with rows to spare: those that leave or join are moved, the others stay where they are."""

from collections.abc import Sequence

from torch import Tensor

WIDTH = 2  # the dimension along which a row grows


def keep(storage: Tensor, rows: Sequence[int], *, dim: int) -> Tensor:
    """The storage whose first rows along `dim` are `rows`; in place where no row would be overwritten before it has moved."""
    if any(row < place for place, row in enumerate(rows)):
        return storage[(slice(None),) * dim + (list(rows),)]
    for place, row in enumerate(rows):
        if row != place:
            storage.select(dim, place).copy_(storage.select(dim, row))
    return storage


def add(storage: Tensor, num_rows: int, new: Tensor, *, dim: int) -> Tensor:
    """The storage with the rows of `new` behind its first `num_rows`, zeros behind what is narrower.

    It is copied only where it is too small, and then grows by a quarter more than it has to.
    """
    needed, width = num_rows + new.shape[dim], max(storage.shape[WIDTH], new.shape[WIDTH])
    if storage.shape[dim] < needed or storage.shape[WIDTH] < width:
        shape = list(storage.shape)
        shape[dim], shape[WIDTH] = max(shape[dim], needed + needed // 4), width
        grown = storage.new_zeros(shape)
        grown.narrow(dim, 0, num_rows).narrow(WIDTH, 0, storage.shape[WIDTH]).copy_(storage.narrow(dim, 0, num_rows))
        storage = grown
    place = storage.narrow(dim, num_rows, new.shape[dim])
    place.narrow(WIDTH, 0, new.shape[WIDTH]).copy_(new)
    place.narrow(WIDTH, new.shape[WIDTH], width - new.shape[WIDTH]).zero_()  # rubbish may be NaN, which no mask hides
    return storage


def filling_holes(kept: Sequence[int]) -> list[int]:
    """Rows to keep, in rising order, as an order in which the last ones fill the places of those that leave."""
    num_kept = len(kept)
    own = {row for row in kept if row < num_kept}
    movers = iter(row for row in kept if row >= num_kept)
    return [place if place in own else next(movers) for place in range(num_kept)]
