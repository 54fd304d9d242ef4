"""Naming the bug from an exact law: the hypothesis that a bettor with infinitely many tokens would end up rich on."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from verify.betting.evidence import TokenEvidence
from verify.betting.hypotheses import Hypothesis
from verify.betting.library import library
from verify.models.law import alternative_laws, next_token_laws
from verify.protocol import Request
from verify.scoring import array
from verify.subject import Subject

Output = tuple[int, ...]


def diagnose_law(subject: Subject, request: Request, law: Mapping[Output, float]) -> str:
    """Explain the observed law of one request's output.

    For each bug hypothesis, the expected logarithm of its stake per output, under the observed law: the growth rate of its
    wealth. Returns "" where no hypothesis would win anything.
    """
    weights, evidence, observed = _conditionals(subject, request, law)
    if not weights:
        return ""
    growth: dict[str, float] = {}
    explained: dict[str, Hypothesis] = {}
    occurs = observed > 0
    for hypothesis in library():
        mistaken = hypothesis.law(evidence)
        if mistaken is None:
            continue
        for share in hypothesis.shares:
            ratio = 1 + share * (mistaken / np.maximum(evidence.target_probs, 1e-300) - 1)  # [N, V]
            gains = np.where(occurs, observed * np.log(np.maximum(ratio, 1e-300)), 0.0).sum(-1)  # [N]
            rate = float(np.dot(weights, gains))
            if rate > growth.get(hypothesis.name, -math.inf):
                growth[hypothesis.name] = rate
                explained[hypothesis.name] = hypothesis
    ranking = sorted(growth, key=lambda name: -growth[name])
    if not ranking or growth[ranking[0]] <= 0:
        return ""
    best = explained[ranking[0]]
    runner_up = growth[ranking[1]] if len(ranking) > 1 else 0.0
    against = f", next {ranking[1]} {runner_up:.3g}" if len(ranking) > 1 else ""
    return f"{best.name} ({best.family}; wins {growth[best.name]:.3g} nats per output{against}): {best.explanation}"


def _conditionals(
    subject: Subject, request: Request, law: Mapping[Output, float]
) -> tuple[list[float], TokenEvidence, np.ndarray]:
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
    others: dict[str, list[np.ndarray]] = defaultdict(list)
    for rows, prefix in zip(target_rows, prefixes, strict=True):
        for name, law_rows in alternative_laws(rows, request, (*prefix, 0)).items():
            others[name].append(array(law_rows[-1:]))
    drafts = None
    if draft_rows is not None:
        drafts = [
            array(next_token_laws(rows, request, prefix)[-1:])
            for rows, prefix in zip(draft_rows, prefixes, strict=True)
        ]
    if drafts is not None and not all(np.isfinite(law).all() for law in drafts):
        drafts = None  # a corrupt draft has no law to explain anything with
    evidence = TokenEvidence(
        target_probs=np.concatenate(laws),
        token_ids=np.zeros(len(prefixes), dtype=np.int64),
        draft_probs=None if drafts is None else np.concatenate(drafts),
        alternatives={name: np.concatenate(rows) for name, rows in others.items()},
    )
    return [reached[prefix] for prefix in prefixes], evidence, observed
