"""Thousands of rows a call on known laws: blocks out, counts in, bets on the counts."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch

from verify.betting.evidence import Floats, Ints
from verify.kernel.block import Block, Emission, Kernel, run_kernel
from verify.kernel.counts import CountBet, Table
from verify.kernel.pairing import Calls, of_rows, table_of
from verify.kernel.rules import Rows, mistaken_laws, standard_law

CALLS_BETWEEN_LOOKS = 4
# Fewer are no ground for a verdict; on a vocabulary of 151,936 even these take seconds.
FEWEST_OUTCOMES = 64
# Rows that show the pace of a step.
FEW_ROWS = 64
# A step too slow for its promise gets this many times the time of others.
PATIENCE = 100
Pairs = Literal["", "rows", "calls", "places"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Laws of one kind of row: drafts are drawn from `rows.draft`; `given` [K, V] is what the step is told (None: the same)."""

    rows: Rows
    given: Floats | None = None


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Calls of `num_rows` rows. Row b has setting b mod G and, beyond that, the lengths in turn.

    `joint` bets on (accepted, block), which only the standard rule must follow; else on the completed block. `pairs` bets on
    two rows together, on one row in two calls, or on a block's tokens at its first place and at place g + 1 (g: the setting of
    its row): they must be independent. `one_hot` hands over no draft law.
    """

    settings: tuple[Setting, ...]
    num_rows: int
    lengths: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    joint: bool = False
    pairs: Pairs = ""
    one_hot: bool = False
    seed: int = 0
    random: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "random", np.random.default_rng(self.seed))

    @property
    def width(self) -> int:
        """K."""
        return self.settings[0].rows.num_drafts

    @cached_property
    def row_settings(self) -> Ints:
        """Setting of each row, `[B]`."""
        return np.arange(self.num_rows, dtype=np.int64) % len(self.settings)

    @cached_property
    def row_lengths(self) -> Ints:
        """Number of drafts of each row, `[B]`."""
        turns = np.arange(self.num_rows) // len(self.settings)
        return np.array(self.lengths, dtype=np.int64)[turns % len(self.lengths)]

    @cached_property
    def block(self) -> Block:
        """A block without drafts: what all calls share."""
        target = np.stack([each.rows.target for each in self.settings])  # [G, K + 1, V]
        given = np.stack([each.rows.draft if each.given is None else each.given for each in self.settings])
        drafted = np.arange(self.width)[None, :] < self.row_lengths[:, None]  # [B, K]
        draft_probs = np.where(drafted[:, :, None], given[self.row_settings], 0.0)
        return Block(
            draft_token_ids=torch.zeros(self.num_rows, self.width, dtype=torch.int64, device=self.device),
            draft_probs=None if self.one_hot else self._tensor(draft_probs),
            target_probs=self._tensor(target[self.row_settings]),
            draft_lengths=torch.from_numpy(self.row_lengths.copy()).to(self.device),
        )

    @cached_property
    def tables(self) -> list[Table]:
        """One table a setting and length; of pairs of outcomes where pairs are judged."""
        if self.pairs == "places":
            laws = [[each.rows.binned(law) for law in each.rows.target] for each in self.settings]
            return [table_of(own[0], own[1 + g]) for g, own in enumerate(laws)]
        tables = []
        for setting in self.settings:
            for length in self.lengths:
                rows = setting.rows.cut(length)
                law = self._outcomes(standard_law(rows))
                mistakes = {name: self._outcomes(wrong) for name, wrong in mistaken_laws(rows).items()}
                tables.append(Table(law=law, mistakes=mistakes))
        if not self.pairs:
            return tables
        (single,) = tables
        return [table_of(single.law, single.law)]

    def draw(self) -> Block:
        """The next block: fresh drafts, in memory of their own."""
        fresh = self.block.copy()
        tokens = self._tokens([each.rows.draft for each in self.settings])  # [B, K]
        tokens[np.arange(self.width)[None, :] >= self.row_lengths[:, None]] = 0
        fresh.draft_token_ids.copy_(torch.from_numpy(tokens))
        return fresh

    def classes(self, emission: Emission) -> Ints:
        """The class of every token, `[B, K + 1]`; what the step did not emit is drawn from the target."""
        completed = self._tokens([each.rows.target for each in self.settings])
        emitted = emission.token_ids >= 0
        completed[emitted] = emission.token_ids[emitted]
        classes: Ints = self.settings[0].rows.classes[completed]
        return classes

    def outcomes(self, emission: Emission) -> Ints:
        """Number of each row's outcome in its table, `[B]`."""
        classes = self.classes(emission)
        num_classes = self.settings[0].rows.num_classes
        codes = emission.num_accepted.copy() if self.joint else np.zeros(self.num_rows, dtype=np.int64)
        for position in range(self.width + 1):
            inside = position <= self.row_lengths
            codes[inside] = codes[inside] * num_classes + classes[inside, position]
        return codes

    def paced(self, kernel: Kernel, *, seconds: float) -> "Experiment":
        """The same with fewer rows, at least `FEW_ROWS`, where a call would outlast `seconds`; raises as `run_kernel`."""
        if self.num_rows <= FEW_ROWS:
            return self
        few = replace(self, num_rows=FEW_ROWS)
        block = few.draw()
        start = time.monotonic()
        run_kernel(kernel, block)
        spent = time.monotonic() - start
        if spent * self.num_rows <= seconds * FEW_ROWS:
            return self
        return replace(self, num_rows=max(FEW_ROWS, int(FEW_ROWS * seconds / spent)))

    def run(
        self,
        kernel: Kernel,
        *,
        alpha: float,
        num_outcomes: int,
        seconds: float,
        enough: Callable[[CountBet], bool] = lambda _: True,
        progress: Callable[[int], None] = lambda _: None,
    ) -> CountBet:
        """Bet until rejection, `num_outcomes` outcomes or `seconds`; raises what `run_kernel` raises.

        Where `seconds` are over before `FEWEST_OUTCOMES`, or before `enough` of the bet, it goes on, `PATIENCE` times as long at
        most. The bet holds at any stopping time.
        """
        bet = CountBet(self.tables, alpha=alpha)
        start = time.monotonic()
        end, last = start + seconds, start + PATIENCE * seconds
        calls = Calls(self.random)
        while not bet.rejected and bet.num_outcomes < num_outcomes:
            now = time.monotonic()
            if now >= last or (now >= end and bet.num_outcomes >= FEWEST_OUTCOMES and enough(bet)):
                break
            counts = [np.zeros(table.law.size, dtype=np.int64) for table in self.tables]
            for _ in range(CALLS_BETWEEN_LOOKS):
                self._count(run_kernel(kernel, self.draw()), calls, counts)
                if time.monotonic() >= end:
                    break
            bet.update(counts)
            progress(bet.num_outcomes)
        return bet

    def _count(self, emission: Emission, calls: Calls, counts: Sequence[Ints]) -> None:
        """Add one call's outcomes; `calls` pairs them with those of another."""
        if self.pairs == "places":
            classes, size = self.classes(emission), self.settings[0].rows.num_classes
            for g, mine in enumerate(counts):
                own = classes[self.row_settings == g]
                mine += np.bincount(own[:, 0] * size + own[:, 1 + g], minlength=size**2)
            return
        codes = self.outcomes(emission)
        if self.pairs:
            pair = of_rows(codes, self.random) if self.pairs == "rows" else calls.take(codes)
            if pair is not None:
                size = math.isqrt(counts[0].size)
                counts[0][:] += np.bincount(pair[0] * size + pair[1], minlength=size**2)
            return
        for g in range(len(self.settings)):
            for position, length in enumerate(self.lengths):
                index = g * len(self.lengths) + position
                chosen = codes[(self.row_settings == g) & (self.row_lengths == length)]
                counts[index][:] += np.bincount(chosen, minlength=counts[index].size)

    def _outcomes(self, law: Floats) -> Floats:
        return law.reshape(-1) if self.joint else law.sum(0).reshape(-1)

    def _tokens(self, laws: Sequence[Floats]) -> Ints:
        """One token a row and position from each setting's laws `[N, V]`: `[B, N]`."""
        uniforms = self.random.random((self.num_rows, len(laws[0])))
        tokens = np.zeros(uniforms.shape, dtype=np.int64)
        for g, of_setting in enumerate(laws):
            chosen = self.row_settings == g
            for position, law in enumerate(of_setting):
                possible = np.flatnonzero(law > 0)
                ends = np.cumsum(law[possible])
                drawn = np.searchsorted(ends[:-1], uniforms[chosen, position] * ends[-1], side="right")
                tokens[chosen, position] = possible[drawn]
        return tokens

    def _tensor(self, values: Floats) -> torch.Tensor:
        return torch.from_numpy(values).to(self.dtype).to(self.device)
