"""One batch of laws, with the row totals that bug hypotheses share, read at all tokens or only at the emitted one."""

from functools import cached_property

import numpy as np

from verify.betting.evidence import Floats, Ints, TokenEvidence, at_tokens


def row_sums(values: Floats) -> Floats:
    """Sums over the vocabulary, [N, V] to [N, 1]."""
    sums: Floats = values.sum(axis=1, keepdims=True)
    return sums


class Rows:
    """The laws of one batch, seen at C columns: every token (C = V) or only the emitted one (C = 1).

    A law is written once, from `target`, `draft` (at the columns) and row totals, and serves both: [N, V] for moments
    and [N, 1] for bets, where a vocabulary of 151,936 then costs one pass per total and no stored law.
    """

    def __init__(self, evidence: TokenEvidence, *, emitted_only: bool) -> None:
        self.evidence = evidence
        self.emitted_only = emitted_only

    @property
    def all_target(self) -> Floats:
        """Target law at every token, [N, V]."""
        return self.evidence.target_probs

    @property
    def all_draft(self) -> Floats:
        """Draft law at every token, [N, V]; ValueError where there is none."""
        if self.evidence.draft_probs is None:
            raise ValueError("draft_probs is None; this law needs the draft law; ask `Hypothesis.applies` first")
        return self.evidence.draft_probs

    def all_of(self, alternative: str) -> Floats:
        """An alternative law at every token, [N, V]."""
        return self.evidence.alternatives[alternative]

    def at(self, values: Floats) -> Floats:
        """The wanted columns of an [N, V] array: [N, C]."""
        if not self.emitted_only:
            return values
        return at_tokens(values, self.evidence.token_ids)[:, None]

    def one_hot(self, token_ids: Ints) -> Floats:
        """The wanted columns of the law that puts all mass on one token a row; `token_ids` [N, 1] to [N, C]."""
        columns = (
            self.evidence.token_ids[:, None] if self.emitted_only else np.arange(self.evidence.vocab_size)[None, :]
        )
        one_hot: Floats = (columns == token_ids).astype(np.float64)
        return one_hot

    @cached_property
    def target(self) -> Floats:
        """Target law at the columns, [N, C]."""
        return self.at(self.all_target)

    @cached_property
    def draft(self) -> Floats:
        """Draft law at the columns, [N, C]."""
        return self.at(self.all_draft)

    @cached_property
    def accepted(self) -> Floats:
        """Mass that the standard rule accepts at the columns: min(target, draft), [N, C]."""
        return np.minimum(self.target, self.draft)

    @cached_property
    def all_acceptance(self) -> Floats:
        """Probability that the standard rule accepts a draft of each token: min(1, target/draft), [N, V]."""
        return np.minimum(1, self.all_target / np.maximum(self.all_draft, 1e-300))

    @cached_property
    def all_excess(self) -> Floats:
        """max(target - draft, 0) at every token, [N, V]."""
        return np.maximum(self.all_target - self.all_draft, 0)

    @cached_property
    def rejected(self) -> Floats:
        """Probability that the standard rule rejects, [N, 1]."""
        return row_sums(self.all_excess)

    @cached_property
    def residual(self) -> Floats:
        """The standard law of the recovered token at the columns, [N, C]."""
        return self.residual_of(self.all_target, self.all_draft)

    def residual_of(self, all_target: Floats, all_draft: Floats) -> Floats:
        """max(target - draft, 0) normalised, at the columns, [N, C]; the target where that is empty."""
        standard = all_target is self.all_target and all_draft is self.all_draft
        excess = self.all_excess if standard else np.maximum(all_target - all_draft, 0)
        totals = self.rejected if standard else row_sums(excess)
        empty = totals <= 0
        return np.where(empty, self.at(all_target), self.at(excess) / np.where(empty, 1, totals))

    @cached_property
    def log_target(self) -> Floats:
        """Logarithm of the target at every token, floored far below any rounding (exp(-690)), [N, V]."""
        return np.log(np.maximum(self.all_target, 1e-300))

    @cached_property
    def log_draft(self) -> Floats:
        """Logarithm of the draft at every token, floored at 1e-12 so that powers of it stay bounded, [N, V]."""
        return np.log(np.maximum(self.all_draft, 1e-12))
