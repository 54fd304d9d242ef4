"""Naming the bug from an exact law: the hypothesis that a bettor with infinitely many tokens would end up rich on."""

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from verify.betting.evidence import Floats, TokenEvidence
from verify.betting.hypotheses import Hypothesis
from verify.betting.library import library
from verify.models.law import alternative_laws, draft_alternatives, next_token_laws
from verify.protocol import Request
from verify.scoring import array
from verify.subject import Subject

Output = tuple[int, ...]
# Two laws this near (total variation) are one: what float32 casts may cause, and far below any bug in a small case.
SAME_LAW = 5e-7
# Shares of the positions at which a mistake may act: finer than a bettor's, as nothing is staked here, and the same for all.
SHARES = (0.004, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.98)


def diagnose_law(subject: Subject, request: Request, law: Mapping[Output, float]) -> str:
    """Explain the observed law of one request's output; "" where no hypothesis explains anything.

    Where the first token is off, every round has the same form there, so a hypothesis either gives the observed law of the
    first token or does not. Otherwise the hypotheses are ranked by the growth rate of a bettor's wealth: the expected
    logarithm of its stake per output, under the observed law.
    """
    weights, evidence, observed = _conditionals(subject, request, law)
    if not weights:
        return ""
    first = weights.index(max(weights))  # the empty prefix, which every output has
    error = 0.5 * float(np.abs(observed[first] - evidence.target_probs[first]).sum())
    if error > SAME_LAW:
        return _by_first_token(weights, evidence, observed, first, error)
    return _by_growth(weights, evidence, observed)


def _by_first_token(weights: Sequence[float], evidence: TokenEvidence, observed: Floats, row: int, error: float) -> str:
    """The hypothesis whose law of the first token is the observed one, or the nearest; on a tie the whole output decides."""
    distances: dict[str, tuple[float, Hypothesis]] = {}
    for hypothesis in library():
        mistaken = hypothesis.law(evidence)
        if mistaken is not None and hypothesis.place != "bonus":
            distance = 0.5 * float(np.abs(observed[row] - mistaken[row]).sum())
            if distance < distances.get(hypothesis.name, (math.inf, hypothesis))[0]:
                distances[hypothesis.name] = (distance, hypothesis)
    ranking = sorted(distances.values(), key=lambda entry: entry[0])
    if not ranking or ranking[0][0] >= error:
        return ""
    exact = {each.name for distance, each in ranking if distance <= SAME_LAW}
    if len(exact) > 1:
        growth = _growth(weights, evidence, observed, only=exact)
        ranking.sort(key=lambda entry: (entry[1].name not in exact, -growth.get(entry[1].name, (0.0,))[0], entry[0]))
    (nearest, best), *others = ranking
    fits = "gives exactly" if nearest <= SAME_LAW else "comes nearest to"
    against = f"; next {others[0][1].name}, {others[0][0]:.2g} away" if others else ""
    return (
        f"{best.name} ({best.family}) {fits} the observed law of the first token (TV {nearest:.2g} from it, the target is "
        f"{error:.2g} away{against}): {best.explanation}"
    )


def _by_growth(weights: Sequence[float], evidence: TokenEvidence, observed: Floats) -> str:
    """The hypothesis on which a bettor would win most per output."""
    growth = _growth(weights, evidence, observed)
    ranking = sorted(growth, key=lambda name: -growth[name][0])
    if not ranking or growth[ranking[0]][0] <= 0:
        return ""
    rate, best = growth[ranking[0]]
    against = f", next {ranking[1]} {growth[ranking[1]][0]:.3g}" if len(ranking) > 1 else ""
    return f"{best.name} ({best.family}; wins {rate:.3g} nats per output{against}): {best.explanation}"


def _growth(
    weights: Sequence[float], evidence: TokenEvidence, observed: Floats, *, only: Collection[str] = ()
) -> dict[str, tuple[float, Hypothesis]]:
    """By name, what a bettor wins per output at the best share, and the variant that wins it; of all, or of some."""
    found: dict[str, tuple[float, Hypothesis]] = {}
    occurs = observed > 0
    for hypothesis in library():
        mistaken = None if only and hypothesis.name not in only else hypothesis.law(evidence)
        if mistaken is None:
            continue
        for share in SHARES:
            ratio = 1 + share * (mistaken / np.maximum(evidence.target_probs, 1e-300) - 1)  # [N, V]
            gains = np.where(occurs, observed * np.log(np.maximum(ratio, 1e-300)), 0.0).sum(-1)  # [N]
            rate = float(np.dot(weights, gains))
            if rate > found.get(hypothesis.name, (-math.inf, hypothesis))[0]:
                found[hypothesis.name] = (rate, hypothesis)
    return found


def _conditionals(
    subject: Subject, request: Request, law: Mapping[Output, float]
) -> tuple[list[float], TokenEvidence, Floats]:
    """The observed next-token law after every reachable prefix, with the probability of reaching it."""
    reached: dict[Output, float] = defaultdict(float)
    following: dict[Output, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for output, probability in law.items():
        for position, token_id in enumerate(output):
            reached[output[:position]] += probability
            following[output[:position]][token_id] += probability
    prefixes = [prefix for prefix in reached if reached[prefix] > 0]
    scored: Sequence[tuple[Request, Output]] = [(request, (*prefix, 0)) for prefix in prefixes]
    vocab_size = subject.models.vocab_size
    observed = np.zeros((len(prefixes), vocab_size))
    for row, prefix in enumerate(prefixes):
        for token_id, probability in following[prefix].items():
            observed[row, token_id] = probability / reached[prefix]
    target_rows = subject.reference.logits_of(scored)
    draft_rows = subject.draft_reference.logits_of(scored) if subject.capabilities.draft_model else None
    laws = [
        array(next_token_laws(rows, request, prefix)[-1:]) for rows, prefix in zip(target_rows, prefixes, strict=True)
    ]
    others: dict[str, list[Floats]] = defaultdict(list)
    for rows, prefix in zip(target_rows, prefixes, strict=True):
        for name, law_rows in alternative_laws(rows, request, (*prefix, 0)).items():
            others[name].append(array(law_rows[-1:]))
    drafts = None
    # Corrupt logits, or another vocabulary, are no law over the target's tokens to explain anything with.
    if draft_rows is not None and subject.draft_reference.vocab_size == vocab_size:
        drafts = [
            array(next_token_laws(rows, request, prefix)[-1:])
            for rows, prefix in zip(draft_rows, prefixes, strict=True)
        ]
        if all(np.isfinite(law).all() for law in drafts):
            for rows, prefix in zip(draft_rows, prefixes, strict=True):
                for name, law_rows in draft_alternatives(rows, request, (*prefix, 0)).items():
                    others[name].append(array(law_rows[-1:]))
        else:
            drafts = None
    evidence = TokenEvidence(
        target_probs=np.concatenate(laws),
        token_ids=np.zeros(len(prefixes), dtype=np.int64),
        draft_probs=None if drafts is None else np.concatenate(drafts),
        alternatives={name: np.concatenate(rows) for name, rows in others.items()},
    )
    return [reached[prefix] for prefix in prefixes], evidence, observed
