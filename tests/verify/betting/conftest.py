"""A vectorised speculative sampler on random contexts, correct or with one planted bug."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from verify.betting.evidence import TokenEvidence

Floats = NDArray[np.float64]


def softmax(logits: Floats) -> Floats:
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def draw(rng: np.random.Generator, laws: Floats) -> NDArray[np.int64]:
    """One token per row by inverse CDF, [N, V] to [N]; never a token of probability 0."""
    totals = np.cumsum(laws, axis=1)
    return (totals <= rng.random((len(laws), 1)) * totals[:, -1:]).sum(axis=1)


@dataclass(frozen=True)
class Simulator:
    """Rounds of `num_draft_tokens` drafts, each position with its own random target and draft law."""

    vocab_size: int = 64
    num_draft_tokens: int = 3
    temperature: float = 0.7
    spread: float = 1.0
    disagreement: float = 0.7

    def __call__(self, rng: np.random.Generator, num_rounds: int, bug: str = "", leak: float = 0.01) -> TokenEvidence:
        per_round, count = self.num_draft_tokens + 1, num_rounds * (self.num_draft_tokens + 1)
        logits = rng.normal(0, self.spread, (count, self.vocab_size))
        target = softmax(logits / self.temperature)
        draft_logits = logits + rng.normal(0, self.disagreement, logits.shape)
        draft = softmax(draft_logits / self.temperature)
        unprocessed = softmax(logits)
        rows = np.arange(count)
        bonus = rows % per_round == self.num_draft_tokens

        drafted = draft.argmax(axis=1) if bug == "greedy_draft_as_soft" else draw(rng, draft)
        ratio = target[rows, drafted] / draft[rows, drafted]
        accept = {
            "accept_without_coin": ratio >= 1,
            "acceptance_too_generous": rng.random(count) < ratio + 0.02,
            "draft_token_0_lost": (rng.random(count) < ratio) & (drafted != 0),
        }.get(bug, rng.random(count) < ratio) | (bug == "everything_accepted")
        residual = np.maximum(target - draft, 0) + 1e-300 * target
        recovered_law = {
            "residual_not_subtracted": target,
            "recovered_from_draft": draft,
            "residual_absolute": np.abs(target - draft),
            "residual_softmax": softmax(np.maximum(target - draft, 0)),
        }.get(bug, residual)
        tokens = np.where(accept, drafted, draw(rng, recovered_law))
        if bug == "residual_argmax":
            tokens = np.where(accept, drafted, residual.argmax(axis=1))
        bonus_law = {"bonus_from_draft": draft, "bonus_unprocessed": unprocessed}.get(bug, target)
        tokens[bonus] = draw(rng, bonus_law[bonus])
        if bug == "unprocessed":
            tokens = draw(rng, unprocessed)
        if bug == "draft_leak":
            tokens = np.where(rng.random(count) < leak, draw(rng, draft), tokens)

        # A position is emitted when every draft before it in the round was accepted.
        accepted_before = np.cumprod(accept.reshape(num_rounds, per_round), axis=1)[:, :-1].astype(bool)
        emitted = np.concatenate([np.ones((num_rounds, 1), dtype=bool), accepted_before], axis=1).ravel()
        roles = np.where(bonus, "bonus", np.where(accept, "accepted", "recovered"))[emitted]
        return TokenEvidence(
            target_probs=target[emitted],
            token_ids=tokens[emitted],
            draft_probs=draft[emitted],
            alternatives={"unprocessed": unprocessed[emitted]},
            draft_offsets=(rows % per_round)[emitted],
            num_draft_tokens=self.num_draft_tokens,
            roles=[str(role) for role in roles],
        )


@pytest.fixture
def make_simulator() -> Callable[..., Simulator]:
    return Simulator
