"""Arg max over exponential or Gumbel noise as one categorical draw.

With independent exponentials E_i, arg max of w_i / E_i is i with probability w_i / sum(w); a Gumbel is -log E. Both are
the exponential race (Maddison, Tarlow and Minka 2014, section 2).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from verify.exact.cells import Cell
from verify.exact.replay import Replay


@dataclass(frozen=True, slots=True)
class _Noise:
    """`scale` * E ** `exponent`, or in log form `scale` * log E + `offset`, for an exponential E of rate 1."""

    logarithmic: bool
    scale: float
    exponent: float = 1.0
    offset: float = 0.0


def draw_winner(replay: Replay, cells: Sequence[Cell | float], *, largest: bool, name: str) -> int:
    """Index of the largest (or smallest) cell: a choice point that uses the noise up.

    Refuses whatever is not a race: unequal forms, noise that was looked at or used before, constants that could win.
    """
    racers = [cell for cell in cells if isinstance(cell, Cell)]
    if len({id(cell.source) for cell in racers}) != len(racers):
        replay.refuse(f"{name} over noise that repeats a value")
    families = set()
    log_weights: list[float] = []
    for cell in cells:
        if not isinstance(cell, Cell):
            log_weights.append(-math.inf)
            continue
        cell.source.check()
        if not cell.source.untouched:
            replay.refuse(f"{name} over noise that was compared before")
        noise = _read(cell)
        found = None if noise is None else _log_weight(noise, largest=largest)
        if found is None:
            replay.refuse(f"{name} over values that are not an exponential race")
        family, log_weight = found
        families.add(family)
        log_weights.append(log_weight)
    if len(families) != 1:
        replay.refuse(f"{name} over noise of unequal forms")
    (family,) = families
    # The worst value that a racer can have: no constant above it may take part.
    worst = 0.0 if family == "positive" else -math.inf
    for cell in cells:
        if not isinstance(cell, Cell) and not (cell if largest else -cell) <= worst:
            replay.refuse(f"{name} over noise and the constant {cell}")
    best = max(log_weights)
    winner = replay.choose([math.exp(each - best) for each in log_weights], name)
    for cell in racers:
        cell.source.spent = name
    return winner


def _log_weight(noise: _Noise, *, largest: bool) -> tuple[str, float] | None:
    """Family and log weight of the cell in the race that the arg max decides; None where it decides none."""
    scale = noise.scale if largest else -noise.scale
    offset = noise.offset if largest else -noise.offset
    if noise.logarithmic:
        return (f"log {-scale:.12g}", offset / -scale) if scale < 0 else None
    if scale > 0 and noise.exponent == -1:
        return "positive", math.log(scale)
    if scale < 0 and noise.exponent == 1:
        return "negative", -math.log(-scale)
    return None


def _read(cell: Cell) -> _Noise | None:
    """The cell as exponential noise, or None. Offsets below the resolution of torch's uniforms count as none."""
    negligible = 2 * torch.finfo(cell.source.dtype).eps
    steps = list(cell.steps)
    while steps and steps[0][0] != "log":
        kind, a, b = steps.pop(0)
        kept = kind == "affine" and abs(a - 1) <= negligible and abs(b) <= negligible
        mirrored = kind == "affine" and abs(a + 1) <= negligible and abs(b - 1) <= negligible
        clamped = kind == "clamp" and a <= negligible and b >= 1 - negligible
        if not (kept or mirrored or clamped):
            return None
    if not steps:
        return None
    noise = _Noise(logarithmic=False, scale=-1.0)  # log U = -E
    for kind, a, b in steps[1:]:
        if noise.logarithmic:
            if kind == "affine":
                noise = _Noise(logarithmic=True, scale=noise.scale * a, offset=noise.offset * a + b)
            elif kind == "exp" and abs(noise.scale) == 1:
                noise = _Noise(logarithmic=False, scale=math.exp(noise.offset), exponent=noise.scale)
            else:
                return None
        elif kind == "affine" and abs(b) <= negligible:
            noise = _Noise(logarithmic=False, scale=noise.scale * a, exponent=noise.exponent)
        elif kind == "reciprocal":
            noise = _Noise(logarithmic=False, scale=1 / noise.scale, exponent=-noise.exponent)
        elif kind == "log" and noise.scale > 0:
            noise = _Noise(logarithmic=True, scale=noise.exponent, offset=math.log(noise.scale))
        elif not (kind == "clamp" and a <= negligible and b == math.inf and noise.scale > 0 and noise.exponent == 1):
            return None
    return noise
