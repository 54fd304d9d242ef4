"""A random Python number: what `item()` of a random tensor and `random.random()` return during an enumeration."""

import math
from typing import Any, NoReturn

from verify.exact.cells import Cell
from verify.exact.replay import Replay, operate_on

_MOST_INTEGERS = 64


class LazyNumber:
    """A number known only by its interval: comparisons decide it, conversion to float is refused.

    `int()` and `math.floor()` are modelled for non-negative numbers of at most 64 integer values.
    """

    __slots__ = ("cell",)
    __array_ufunc__ = None  # numpy numbers on the left leave operations to this class

    def __init__(self, cell: Cell) -> None:
        self.cell = cell

    @property
    def replay(self) -> Replay:
        """The replay that this number belongs to."""
        return self.cell.source.replay

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Hand operations with tensors to the replay."""
        return operate_on(func, args, kwargs or {})

    def __lt__(self, other: float) -> bool:
        return self._compare("lt", other)

    def __le__(self, other: float) -> bool:
        return self._compare("le", other)

    def __gt__(self, other: float) -> bool:
        return self._compare("gt", other)

    def __ge__(self, other: float) -> bool:
        return self._compare("ge", other)

    def __eq__(self, other: object) -> bool:
        return self._compare("eq", other)

    def __hash__(self) -> int:
        return id(self.cell.source)

    def __neg__(self) -> "LazyNumber | float":
        return _wrap(self.cell.affine(-1, 0))

    def __add__(self, other: float) -> "LazyNumber | float":
        return _wrap(self.cell.affine(1, self._number(other)))

    def __mul__(self, other: float) -> "LazyNumber | float":
        return _wrap(self.cell.affine(self._number(other), 0))

    def __sub__(self, other: float) -> "LazyNumber | float":
        return _wrap(self.cell.affine(1, -self._number(other)))

    def __rsub__(self, other: float) -> "LazyNumber | float":
        return _wrap(self.cell.affine(-1, self._number(other)))

    def __truediv__(self, other: float) -> "LazyNumber | float":
        return _wrap(self.cell.affine(1 / self._number(other), 0))

    __radd__ = __add__
    __rmul__ = __mul__

    def __floor__(self) -> int:
        low, high = self.cell.ends()
        if low < 0 or high > _MOST_INTEGERS:
            self._refuse(f"an integer from a uniform over more than {_MOST_INTEGERS} values")
        return next(n for n in range(math.ceil(high)) if n + 1 >= high or self.cell.below(n + 1, inclusive=False))

    __int__ = __floor__
    __trunc__ = __floor__

    def __float__(self) -> float:
        self._refuse("float() of a random number")

    def __bool__(self) -> bool:
        self._refuse("bool() of a random number")

    def __index__(self) -> int:
        self._refuse("a random number as an index")

    def _compare(self, name: str, other: object) -> bool:
        if isinstance(other, LazyNumber) and other.cell == self.cell:
            return name in ("le", "ge", "eq")
        return self.cell.compare(name, self._number(other))

    def _number(self, other: object) -> float:
        if isinstance(other, LazyNumber):
            self._refuse("an operation on two random numbers")
        return float(other)  # type: ignore[arg-type]

    def _refuse(self, name: str) -> NoReturn:
        self.replay.refuse(name)


def _wrap(value: Cell | float) -> LazyNumber | float:
    return LazyNumber(value) if isinstance(value, Cell) else value
