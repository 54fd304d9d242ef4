"""Decoders simulated at full speed: many runs in step, each token drawn as a real decoder draws it."""

from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from verify.betting.evidence import TokenEvidence
from verify.models.pairs import TableSpec, draft_probs_of, target_probs_of

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]

DECODERS = ("standard", "sample match", "one-hot drafts")


@dataclass(frozen=True)
class World:
    """A pair of tables, how the decoder uses it, and what it gets wrong.

    The row of a position is a hash of the row and the token before it, so every law depends on what was emitted. `decoder`:
    "standard" accepts with min(1, target/draft) and recovers from the residual; "sample match" draws from the target while
    the draft guesses it; "one-hot drafts" drafts the arg max. All three are lossless. `temperature` divides the logits of
    both tables. `leak` is the share of tokens that are replaced by a draw from the draft law, which is the planted bug.
    `noise` [num_rows, V] is added to the target's log-probabilities inside the decoder, and the reference does not see it.
    """

    spec: TableSpec
    decoder: str = "standard"
    num_draft_tokens: int = 3
    temperature: float = 1.0
    leak: float = 0.0
    noise: Floats | None = None

    def __post_init__(self) -> None:
        if self.decoder not in DECODERS:
            raise ValueError(f"decoder {self.decoder!r} is unknown; it must be one of {', '.join(DECODERS)}")

    @property
    def name(self) -> str:
        """What is simulated, in words."""
        heat = f", temperature {self.temperature:g}" if self.temperature != 1 else ""
        return f"vocabulary {self.spec.vocab_size}, {self.spec.relation} draft, {self.decoder}{heat}"

    @cached_property
    def plain_target(self) -> Floats:
        """The target at temperature 1, [num_rows, V]."""
        table: Floats = target_probs_of(self.spec).numpy()
        return table

    @cached_property
    def target(self) -> Floats:
        """The reference law of every row, [num_rows, V]."""
        return tempered(self.plain_target, self.temperature)

    @cached_property
    def draft(self) -> Floats:
        """The draft law of every row, [num_rows, V]."""
        return tempered(draft_probs_of(self.spec, torch.from_numpy(self.plain_target)).numpy(), self.temperature)

    @cached_property
    def used_target(self) -> Floats:
        """The target law that the decoder computes: the reference with its noise, [num_rows, V]."""
        if self.noise is None:
            return self.target
        law = self.target * np.exp(self.noise)
        return np.asarray(law / law.sum(axis=1, keepdims=True))

    @cached_property
    def used_draft(self) -> Floats:
        """The law that drafts are drawn from, [num_rows, V]."""
        if self.decoder != "one-hot drafts":
            return self.draft
        return np.eye(self.spec.vocab_size)[self.draft.argmax(axis=1)]

    @cached_property
    def cumulative(self) -> dict[str, Floats]:
        """Cumulative laws for drawing, each [num_rows, V]."""
        residual = np.maximum(self.used_target - self.used_draft, 0) + 1e-300 * self.used_target
        laws = {"target": self.used_target, "draft": self.used_draft, "residual": residual, "leak": self.draft}
        return {name: np.cumsum(law, axis=1) for name, law in laws.items()}

    def decode(self, rng: np.random.Generator, *, num_runs: int, num_tokens: int) -> "Decoded":
        """`num_runs` independent outputs of `num_tokens` tokens, all runs advanced together."""
        rows = np.empty((num_runs, num_tokens), dtype=np.int64)
        token_ids, offsets = np.empty_like(rows), np.empty_like(rows)
        row = rng.integers(self.spec.num_rows, size=num_runs)
        offset = np.zeros(num_runs, dtype=np.int64)
        for position in range(num_tokens):
            rows[:, position], offsets[:, position] = row, offset
            token, accepted = self._emit(rng, row, offset)
            token_ids[:, position] = token
            offset = np.where(accepted, offset + 1, 0)
            row = next_row(row, token, self.spec.num_rows, self.spec.vocab_size)
        return Decoded(world=self, rows=rows, token_ids=token_ids, offsets=offsets)

    def _emit(self, rng: np.random.Generator, row: Ints, offset: Ints) -> tuple[Ints, npt.NDArray[np.bool_]]:
        """One token of every run, and whether it is an accepted draft, after which the round goes on."""
        drafting = offset < self.num_draft_tokens
        drafted = draw(rng, self.cumulative["draft"][row])
        if self.decoder == "sample match":
            token = draw(rng, self.cumulative["target"][row])
            accepted = drafting & (token == drafted)
        else:
            ratio = self.used_target[row, drafted] / self.used_draft[row, drafted]
            accepted = drafting & (rng.random(row.size) < ratio)
            recovered = draw(rng, self.cumulative["residual"][row])
            bonus = draw(rng, self.cumulative["target"][row])
            token = np.where(accepted, drafted, np.where(drafting, recovered, bonus))
        if self.leak:
            token = np.where(rng.random(row.size) < self.leak, draw(rng, self.cumulative["leak"][row]), token)
        return token, accepted


@dataclass(frozen=True)
class Decoded:
    """Outputs of a world: the row, the token and the offset in its round of every position, each [num_runs, num_tokens]."""

    world: World
    rows: Ints
    token_ids: Ints
    offsets: Ints

    def evidence(self) -> list[TokenEvidence]:
        """One batch of evidence a run, as the suite's scoring gives it."""
        world, num_tokens = self.world, self.rows.shape[1]
        flat = self.rows.ravel()
        before = np.concatenate([self.rows[:, :1], self.rows[:, :-1]], axis=1).ravel()
        alternatives = {"previous_row": world.target[before]}
        if world.temperature != 1:
            alternatives |= dict.fromkeys(("unprocessed", "no_temperature"), world.plain_target[flat])
        evidence = TokenEvidence(
            target_probs=world.target[flat],
            token_ids=self.token_ids.ravel(),
            draft_probs=world.draft[flat],
            alternatives=alternatives,
            draft_offsets=self.offsets.ravel(),
            num_draft_tokens=world.num_draft_tokens,
        )
        return list(evidence.chunks(num_tokens))


def next_row(row: Ints, token_ids: Ints, num_rows: int, vocab_size: int) -> Ints:
    """The row after a token: a hash of both (Fibonacci hashing), uniform over the table."""
    mixed = (row * vocab_size + token_ids + 1).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return ((mixed >> np.uint64(40)) % np.uint64(num_rows)).astype(np.int64)


def draw(rng: np.random.Generator, cumulative: Floats) -> Ints:
    """One token a row from cumulative laws [N, V]; never one of probability 0."""
    drawn: Ints = (cumulative <= rng.random((len(cumulative), 1)) * cumulative[:, -1:]).sum(axis=1)
    return drawn


def tempered(law: Floats, temperature: float) -> Floats:
    """law^(1/temperature), normalised, [num_rows, V]."""
    if temperature == 1:
        return law
    powered = law ** (1 / temperature)
    return np.asarray(powered / powered.sum(axis=1, keepdims=True))
