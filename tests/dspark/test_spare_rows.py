"""Rows that come and go in one tensor, against a list of rows."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dspark.spare_rows import WIDTH, add, filling_holes, keep

SHAPES = {0: (0, 2, 0, 3), 1: (4, 0, 0, 3)}  # by the dimension that the rows are in
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 3), st.integers(0, 4)),
        st.tuples(st.just("keep"), st.permutations(range(8)), st.integers(0, 8)),
        st.tuples(st.just("leave"), st.sets(st.integers(0, 7)), st.none()),
    ),
    max_size=8,
)


def row(number: int, width: int, dim: int) -> Tensor:
    shape = list(SHAPES[dim])
    shape[WIDTH] = width
    del shape[dim]
    return torch.full(shape, float(number + 1))


@pytest.mark.parametrize("dim", SHAPES)
@given(steps=steps)
@settings(max_examples=100, deadline=None)
def test_rows_are_those_of_a_list(dim: int, steps: list[tuple[str, Any, Any]]) -> None:
    storage, rows, made = torch.zeros(SHAPES[dim]), list[Tensor](), 0
    for what, first, second in steps:
        if what == "add":
            new = [row(made + place, second, dim) for place in range(first)]
            storage, made = add(storage, len(rows), torch.stack(new, dim), dim=dim), made + first
            storage.narrow(dim, len(rows) + first, storage.shape[dim] - len(rows) - first).fill_(torch.nan)
            rows += new
        elif rows:
            if what == "keep":
                places = [place for place in first if place < len(rows)][:second]
            else:
                places = filling_holes([place for place in range(len(rows)) if place not in first])
            storage, rows = keep(storage, places, dim=dim), [rows[place] for place in places]
        for place, expected in enumerate(rows):
            found = storage.select(dim, place)
            width = expected.shape[WIDTH - 1]
            assert torch.equal(found.narrow(WIDTH - 1, 0, width), expected)
            assert not found.isnan().any(), "a mask does not hide NaN"


def test_others_stay_where_they_are() -> None:
    storage = torch.arange(24.0).view(4, 1, 6, 1)
    assert keep(storage, [0, 3, 2], dim=0) is storage
    assert storage[:, 0, 0, 0].tolist() == [0, 18, 12, 18]
    assert add(storage, 3, torch.ones(1, 1, 2, 1), dim=0) is storage
    assert storage[3, 0, :, 0].tolist() == [1, 1, 0, 0, 0, 0]
    assert keep(storage, [1, 0], dim=0)[:2, 0, 0, 0].tolist() == [18, 0]


def test_it_grows_by_more_than_it_has_to() -> None:
    grown = add(torch.zeros(8, 1, 2, 1), 8, torch.ones(1, 1, 3, 1), dim=0)
    assert grown.shape == (11, 1, 3, 1)
    assert grown[8, 0, :, 0].tolist() == [1, 1, 1]


def test_the_last_rows_fill_the_holes() -> None:
    assert filling_holes([0, 1, 2]) == [0, 1, 2]
    assert filling_holes([0, 2, 3, 5]) == [0, 5, 2, 3]
    assert filling_holes([4]) == [4]
    assert filling_holes([]) == []
