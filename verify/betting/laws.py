"""The law that each known mistake gives to an emitted token, from `Rows` to [N, C].

Notation of the standard rule: a draft is accepted with probability min(1, target/draft); after a rejection the
recovered token comes from max(target - draft, 0), normalised (Leviathan et al. 2023, algorithm 1).
"""

from collections.abc import Callable
from functools import cache
from typing import TypeAlias

import numpy as np

from verify.betting.evidence import Floats, Ints, at_tokens
from verify.betting.rows import Rows, row_sums

Law: TypeAlias = Callable[[Rows], Floats]


def draft(rows: Rows) -> Floats:
    """Every draft is accepted; also what a residual max(draft - target, 0) gives."""
    return rows.draft


def uniform(rows: Rows) -> Floats:
    """Any token that the target can emit: what it cannot emit rejects by itself, and would make every other leak look visible."""
    possible = (rows.all_target > 0).astype(np.float64)
    return rows.at(possible) / row_sums(possible)


def target_argmax(rows: Rows) -> Floats:
    """The most probable token."""
    return rows.one_hot(_argmax(rows.all_target))


@cache
def alternative(name: str) -> Law:
    """The alternative law itself; one object per name, so that equal laws are known to be equal."""
    return lambda rows: rows.at(rows.all_of(name))


def power(*, target: float, draft: float = 0.0) -> Law:
    """target^a draft^b, normalised."""

    def law(rows: Rows) -> Floats:
        logs = target * rows.log_target
        if draft:
            logs = logs + draft * rows.log_draft
        logs -= logs.max(axis=1, keepdims=True)
        weights = np.exp(logs, out=logs)
        return rows.at(weights) / row_sums(weights)

    return law


def _argmax(values: Floats) -> Ints:
    argmax: Ints = np.argmax(values, axis=1, keepdims=True)
    return argmax


def _with_acceptance(rows: Rows, all_accepted: Floats) -> Floats:
    """Drafts accepted with mass `all_accepted` [N, V]; every rejection answered from the standard residual."""
    return rows.at(all_accepted) + np.maximum(1 - row_sums(all_accepted), 0) * rows.residual


def accept_without_coin(rows: Rows) -> Floats:
    """Accept iff target >= draft."""
    return _with_acceptance(rows, np.where(rows.all_target >= rows.all_draft, rows.all_draft, 0))


def accept_scaled(factor: float) -> Law:
    """Accept with min(1, factor * target/draft): too generous (lenience) above 1, too strict below."""
    return lambda rows: _with_acceptance(rows, np.minimum(rows.all_draft, factor * rows.all_target))


def accept_shifted(shift: float) -> Law:
    """Accept with min(1, target/draft + shift)."""
    return lambda rows: _with_acceptance(rows, np.minimum(rows.all_draft, rows.all_target + shift * rows.all_draft))


def accept_blindly(probability: float) -> Law:
    """Whether a draft is accepted has nothing to do with its token."""
    return lambda rows: _with_acceptance(rows, probability * rows.all_draft)


def accept_by_the_best(rows: Rows) -> Floats:
    """The ratio is taken at the target's arg max instead of at the draft."""
    best = _argmax(rows.all_target)
    target_at, draft_at = (np.take_along_axis(each, best, axis=1) for each in (rows.all_target, rows.all_draft))
    return _with_acceptance(rows, np.minimum(1, target_at / np.maximum(draft_at, 1e-300)) * rows.all_draft)


def accept_by(name: str) -> Law:
    """Accept by an alternative target law, recover by the true one."""
    return lambda rows: _with_acceptance(rows, np.minimum(rows.all_draft, rows.all_of(name)))


def token_never_accepted(token_id: int) -> Law:
    """A draft of this token is always lost."""

    def law(rows: Rows) -> Floats:
        accepted = np.minimum(rows.all_target, rows.all_draft)
        accepted[:, token_id] = 0
        return _with_acceptance(rows, accepted)

    return law


def recover_from_target(rows: Rows) -> Floats:
    """The draft is not subtracted: the recovered token comes from the target."""
    return rows.accepted + rows.rejected * rows.target


def recover_from_draft(rows: Rows) -> Floats:
    """The recovered token comes from the draft."""
    return rows.accepted + rows.rejected * rows.draft


def recover_from_absolute(rows: Rows) -> Floats:
    """The residual is |target - draft|; its total is twice the rejected mass."""
    return rows.accepted + np.abs(rows.target - rows.draft) / 2


def recover_from_softmax(rows: Rows) -> Floats:
    """The residual is softmax(max(target - draft, 0)): nearly uniform."""
    weights = np.exp(rows.all_excess)
    return rows.accepted + rows.rejected * rows.at(weights) / row_sums(weights)


def recover_argmax(rows: Rows) -> Floats:
    """The recovered token is the arg max of the residual."""
    return rows.accepted + rows.rejected * rows.one_hot(_argmax(rows.all_excess))


def recover_by(name: str) -> Law:
    """Accept by the true target, recover by an alternative one."""
    return lambda rows: rows.accepted + rows.rejected * rows.residual_of(rows.all_of(name), rows.all_draft)


def greedy_draft_as_soft(rows: Rows) -> Floats:
    """The draft is its arg max but is verified as if it had been sampled from the soft draft law."""
    drafted = _argmax(rows.all_draft)  # [N, 1]
    target_at = np.take_along_axis(rows.all_target, drafted, axis=1)
    draft_at = np.take_along_axis(rows.all_draft, drafted, axis=1)
    accept = np.minimum(1, target_at / draft_at)
    return accept * rows.one_hot(drafted) + (1 - accept) * rows.residual


def drawn_from(name: str) -> Law:
    """Drafts are drawn from an alternative draft law but verified with the declared one."""
    return lambda rows: _drawn_from(rows, rows.all_of(name))


def drawn_from_power(exponent: float) -> Law:
    """Drafts are drawn from draft^exponent, normalised, but verified with the draft law itself."""

    def law(rows: Rows) -> Floats:
        drawn = np.exp(exponent * rows.log_draft)
        return _drawn_from(rows, drawn / row_sums(drawn))

    return law


def drawn_from_likely(floor: float, *, best_instead: bool = False) -> Law:
    """Drafts are drawn without the tokens below `floor` times the best one's probability but verified with the whole law.

    The others share the mass of these in proportion, or the best one has all of it.
    """

    def law(rows: Rows) -> Floats:
        best = rows.all_draft.argmax(axis=1)  # [N]
        likely = np.where(rows.all_draft >= floor * at_tokens(rows.all_draft, best)[:, None], rows.all_draft, 0)
        if best_instead:
            likely[np.arange(best.size), best] = at_tokens(likely, best) + 1 - row_sums(likely)[:, 0]
        return _drawn_from(rows, likely / row_sums(likely))

    return law


def _drawn_from(rows: Rows, drawn: Floats) -> Floats:
    return _with_acceptance(rows, drawn * rows.all_acceptance)


def draft_drawn_rounded(rows: Rows) -> Floats:
    """Drafts are drawn from a law rounded to bfloat16 but verified with the law itself."""
    return _drawn_from(rows, _rounded(rows.all_draft))


def draft_from_one_shard(rows: Rows) -> Floats:
    """Drafts are drawn from the first half of the vocabulary but verified with the whole law."""
    shard = rows.all_draft.copy()
    shard[:, (shard.shape[1] + 1) // 2 :] = 0
    mass = row_sums(shard)
    return _drawn_from(rows, np.where(mass > 0, shard / np.maximum(mass, 1e-300), rows.all_draft))


def target_rounded(rows: Rows) -> Floats:
    """The target's law is kept in bfloat16."""
    return rows.at(_rounded(rows.all_target))


def probabilities_as_logits(rows: Rows) -> Floats:
    """The target's probabilities are taken for logits: softmax of a softmax."""
    weights = np.exp(rows.all_target)
    return rows.at(weights) / row_sums(weights)


def both_rounded(rows: Rows) -> Floats:
    """Target and draft laws are kept in bfloat16, and compared and subtracted as they are there, without a new normalisation."""
    target, draft = _in_bfloat16(rows.all_target), _in_bfloat16(rows.all_draft)
    accepted = draft / row_sums(draft) * np.minimum(1, target / np.maximum(draft, 1e-300))  # [N, V]
    rejected = np.maximum(1 - row_sums(accepted), 0)
    return rows.at(accepted) + rejected * rows.residual_of(target, draft)


def _rounded(law: Floats) -> Floats:
    """A law in bfloat16, normalised again."""
    rounded = _in_bfloat16(law)
    normalised: Floats = rounded / row_sums(rounded)
    return normalised


def _in_bfloat16(law: Floats) -> Floats:
    """To the nearest, ties to even."""
    bits = law.astype(np.float32).view(np.uint32)
    rounded: Floats = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32).astype(np.float64)
    return rounded


def coin_of_the_draft(rows: Rows) -> Floats:
    """One number draws the draft, by inversion in the order of the ids, and then accepts or rejects it."""
    above = np.minimum(rows.all_draft.cumsum(axis=1), 1)
    below = np.concatenate([np.zeros_like(above[:, :1]), above[:, :-1]], axis=1)
    return _with_acceptance(rows, np.maximum(np.minimum(above, rows.all_acceptance) - below, 0))


def coin_reused_for_recovery(rows: Rows) -> Floats:
    """The coin that rejected a draft also draws its successor, by inversion of the residual in the order of the ids."""
    empty = rows.rejected <= 0
    recovery = np.where(empty, rows.all_target, rows.all_excess / np.where(empty, 1, rows.rejected))
    above = np.minimum(recovery.cumsum(axis=1), 1)
    above[:, -1] = 1
    below = np.concatenate([np.zeros_like(above[:, :1]), above[:, :-1]], axis=1)
    upper, lower = (_rejected_below(rows.all_draft, rows.all_acceptance, rows.at(edges)) for edges in (above, below))
    return rows.accepted + np.maximum(upper - lower, 0)


def _rejected_below(draft: Floats, accept: Floats, coins: Floats) -> Floats:
    """Probability that the coin is below each of `coins` [N, C] and rejects: sum over drafts of draft * max(0, coin - accept)."""
    if coins.shape[1] == 1:
        return row_sums(draft * np.maximum(coins - accept, 0))
    order = accept.argsort(axis=1)
    starts, weights = (np.take_along_axis(values, order, axis=1) for values in (accept, draft))
    zeros = np.zeros_like(draft[:, :1])
    mass, moment = (np.concatenate([zeros, each.cumsum(axis=1)], axis=1) for each in (weights, weights * starts))
    places = np.stack([np.searchsorted(row, each) for row, each in zip(starts, coins, strict=True)])
    found: Floats = coins * np.take_along_axis(mass, places, axis=1) - np.take_along_axis(moment, places, axis=1)
    return found


def verified_with(name: str) -> Law:
    """Drafts are drawn from the declared law but verified, and subtracted, with an alternative one."""

    def law(rows: Rows) -> Floats:
        verified = rows.all_of(name)
        accepted = rows.all_draft * np.minimum(1, rows.all_target / np.maximum(verified, 1e-300))
        rest = 1 - row_sums(accepted)
        return rows.at(accepted) + rest * rows.residual_of(rows.all_target, verified)

    return law


def ensemble(weight: float) -> Law:
    """Drafts are verified against target and draft mixed: the draft's share is `weight`."""
    return lambda rows: (1 - weight) * rows.target + weight * rows.draft


def typical_acceptance(*, threshold: float, scale: float, greedy_draft: bool) -> Law:
    """Accept iff target > min(threshold, scale exp(-entropy)), else emit the arg max (Cai et al. 2024, section 2.3)."""

    def law(rows: Rows) -> Floats:
        entropy = -row_sums(rows.all_target * rows.log_target)
        accepts = rows.all_target > np.minimum(threshold, scale * np.exp(-entropy))
        if greedy_draft:
            drafted = _argmax(rows.all_draft)
            accepted = np.take_along_axis(accepts, drafted, axis=1)
            return np.where(accepted, rows.one_hot(drafted), target_argmax(rows))
        all_accepted = np.where(accepts, rows.all_draft, 0)
        return rows.at(all_accepted) + (1 - row_sums(all_accepted)) * target_argmax(rows)

    return law
