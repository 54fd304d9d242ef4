"""Random numbers that are known only by their interval: a uniform, and monotone functions of it."""

import math
from dataclasses import dataclass
from typing import TypeAlias

import torch

from verify.exact.replay import Replay

Step: TypeAlias = tuple[str, float, float]

# Thresholds come from a few float64 operations: closer than this to an end of the interval, they are that end.
_ROUNDING = 2.0**-51


@dataclass(slots=True, eq=False)
class Uniform:
    """A uniform on [0, 1) of which comparisons have revealed that it lies in [lower, upper).

    `top` is the largest value that the generator can return; `spent` names the race that used it up.
    """

    replay: Replay
    run: int
    dtype: torch.dtype
    lower: float = 0.0
    upper: float = 1.0
    spent: str = ""

    @property
    def resolution(self) -> float:
        """Distance between neighbouring values of torch's uniforms just below 1."""
        return 2.0**-53 if self.dtype == torch.float64 else 2.0**-24

    @property
    def untouched(self) -> bool:
        """Whether nothing is known of it yet."""
        return self.lower == 0.0 and self.upper == 1.0 and not self.spent

    def check(self) -> None:
        """Refuse a value of an earlier run, and noise that an arg max has used up."""
        if self.run != self.replay.run:
            self.replay.refuse("a random value kept from an earlier run")
        if self.spent:
            self.replay.refuse(f"noise used again after {self.spent}")

    def below(self, threshold: float, *, inclusive: bool) -> bool:
        """Whether it is < (or <=) `threshold`: a choice point that narrows the interval."""
        self.check()
        top = 1.0 - self.resolution
        if self.upper == 1.0 and (threshold > top or (inclusive and threshold == top)):
            return True
        if threshold <= self.lower + _ROUNDING:
            return False
        if threshold >= self.upper - _ROUNDING:
            return True
        width = self.upper - self.lower
        probabilities = ((threshold - self.lower) / width, (self.upper - threshold) / width)
        if self.replay.choose(probabilities, f"uniform < {threshold:.6g}") == 0:
            self.upper = threshold
            return True
        self.lower = threshold
        return False


@dataclass(frozen=True, slots=True)
class Cell:
    """A strictly monotone (or clamped) function of one uniform, as the steps that compute it.

    Steps: ("affine", a, b) is a*x + b; ("clamp", a, b) is min(max(x, a), b); "log", "exp" and "reciprocal" ignore a and b.
    """

    source: Uniform
    steps: tuple[Step, ...] = ()

    def ends(self) -> tuple[float, float]:
        """Smallest and largest value over all uniforms in [0, 1]."""
        values = [_apply(self.steps, 0.0), _apply(self.steps, 1.0)]
        return min(values), max(values)

    def affine(self, factor: float, offset: float) -> "Cell | float":
        """`factor` * self + `offset`; a number when the factor is 0."""
        if not math.isfinite(factor):
            self.source.replay.refuse(f"a random value times {factor}")
        if factor == 0:
            return offset
        if not math.isfinite(offset):
            return offset
        steps = self.steps
        if steps and steps[-1][0] == "affine":
            _, last_factor, last_offset = steps[-1]
            factor, offset, steps = factor * last_factor, factor * last_offset + offset, steps[:-1]
        return Cell(self.source, steps if (factor, offset) == (1, 0) else (*steps, ("affine", factor, offset)))

    def log(self) -> "Cell":
        """Natural logarithm; refused where self can be negative, other than by the rounding of an offset."""
        if self.ends()[0] < -torch.finfo(self.source.dtype).eps:
            self.source.replay.refuse("log of a random value that can be negative")
        return Cell(self.source, (*self.steps, ("log", 0.0, 0.0)))

    def exp(self) -> "Cell":
        """Exponential."""
        return Cell(self.source, (*self.steps, ("exp", 0.0, 0.0)))

    def reciprocal(self) -> "Cell":
        """1 / self; refused where self can be negative."""
        if self.ends()[0] < 0:
            self.source.replay.refuse("1 / a random value that can be negative")
        return Cell(self.source, (*self.steps, ("reciprocal", 0.0, 0.0)))

    def clamp(self, low: float, high: float) -> "Cell":
        """Clamped to [low, high]."""
        return Cell(self.source, (*self.steps, ("clamp", low, high)))

    def below(self, threshold: float, *, inclusive: bool) -> bool:
        """Whether the value is < (or <=) `threshold`, decided on the uniform."""
        self.source.check()
        less = True  # the condition reads "x < threshold" if less, else "x > threshold"
        for index in range(len(self.steps) - 1, -1, -1):
            kind, a, b = self.steps[index]
            if kind == "affine":
                threshold = (threshold - b) / a
                less ^= a < 0
            elif kind == "log":
                threshold = _exp(threshold)
            elif kind == "exp":
                threshold = math.log(threshold) if threshold > 0 else -math.inf
            elif kind == "clamp":
                threshold = _unclamp(threshold, a, b, less=less, inclusive=inclusive)
            else:
                # x is positive here, so 1/x is; a threshold at or below 0 has every value above it.
                threshold, less = (1 / threshold, not less) if threshold > 0 else (-math.inf, less)
        if less:
            return self.source.below(threshold, inclusive=inclusive)
        return not self.source.below(threshold, inclusive=not inclusive)

    def compare(self, name: str, other: float) -> bool:
        """Decide `self <name> other` for a name of `lt`, `le`, `gt`, `ge`, `eq`, `ne`; equality has probability 0."""
        if math.isnan(other) or name in ("eq", "ne"):
            self.source.check()
            return name == "ne"
        below = self.below(other, inclusive=name in ("le", "gt"))
        return below if name in ("lt", "le") else not below


def _apply(steps: tuple[Step, ...], value: float) -> float:
    for kind, a, b in steps:
        if kind == "affine":
            value = a * value + b
        elif kind == "log":
            value = math.log(value) if value > 0 else -math.inf
        elif kind == "exp":
            value = _exp(value)
        elif kind == "clamp":
            value = min(max(value, a), b)
        else:
            value = 1 / value if value else math.inf
    return value


def _exp(value: float) -> float:
    return math.exp(value) if value < 709 else math.inf


def _unclamp(threshold: float, low: float, high: float, *, less: bool, inclusive: bool) -> float:
    """Threshold on x for the same condition on min(max(x, low), high)."""
    never = -math.inf if less else math.inf
    if less:
        if threshold < low or (threshold == low and not inclusive):
            return never
        return -never if threshold > high or (threshold == high and inclusive) else threshold
    if threshold > high or (threshold == high and not inclusive):
        return never
    return -never if threshold < low or (threshold == low and inclusive) else threshold
