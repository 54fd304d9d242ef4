"""Naming the bug from an exact law: the mistake that gives the law which was observed, at the places where it acts."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from verify.betting.evidence import Floats, TokenEvidence
from verify.betting.hypotheses import Hypothesis
from verify.betting.library import explanations_of_rounds, library
from verify.checks.exact_rounds import UNKNOWN, Following, Place
from verify.models.law import alternative_laws, draft_alternatives, history_alternatives, next_token_laws
from verify.protocol import Request
from verify.scoring import array
from verify.subject import Subject

Mask = npt.NDArray[np.bool_]
# Two hypotheses are one where what they leave unexplained differs by less than this share of what there is to explain.
SAME = 1e-4
# A hypothesis that gives the observed law exactly where it acts is no accident if it explains so much of the whole; what is left
# is then another mistake, or the same one at other places.
NO_ACCIDENT = 0.05
# Two probabilities of acceptance are one: what float32 casts may cause.
SAME_ACCEPTANCE = 5e-7
# Shares of the places at which a mistake may act: finer than a bettor's, as nothing is staked here, and the same for all.
SHARES = (0.004, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
WHEREVER = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """One hypothesis at its best: nats per output that it explains, the share of the places and where they are.

    `exact`: it gives the observed law at all places where it acts, and these matter.
    """

    nats: float
    hypothesis: Hypothesis
    share: float
    where: str
    exact: bool

    def order(self, *, acceptance_kept: bool | None) -> tuple[bool, bool, bool, float, bool]:
        """Among explanations that are equally good, smallest first.

        A mistake in the code comes before a mere description of the law; one that agrees with how often drafts were accepted
        before one that does not; then one that acts wherever it can, and always; then one that is not a matter of degree.
        """
        generic = self.hypothesis.family == "GENERIC"
        contradicts = acceptance_kept is not None and acceptance_kept != self.hypothesis.keeps_acceptance
        return generic, contradicts, self.where != WHEREVER, -self.share, bool(self.hypothesis.variant)


def diagnose_law(subject: Subject, request: Request, places: Mapping[Place, Following]) -> str:
    """Explain the observed law of one request's output; "" where no hypothesis explains anything.

    A hypothesis says what the law of the next token is at the places where its mistake acts: positions with a draft, the
    bonus, or all, as far as rounds were seen. Each is taken at its best share of these places, and everywhere or at one
    kind of them (`_kinds`), and all are ranked by how much of the divergence from the target, KL(observed || target) of the
    whole output, they explain: the growth rate of a bettor's wealth.
    """
    evidence = _evidence(subject, request, list(places))
    observed = _observed(list(places.values()), evidence.vocab_size)
    weights = np.array([following.reached for following in places.values()])
    total = float(_nats(weights, observed, observed, evidence.target_probs).sum())
    best = _best_by_name(list(places), weights, evidence, observed)
    if not best or max(each.nats for each in best.values()) <= 0:
        return ""
    kept = _acceptance_kept(places, evidence)
    leader = max(best.values(), key=lambda each: (each.exact, each.nats))
    equals = [each for each in best.values() if each.exact == leader.exact and leader.nats - each.nats <= SAME * total]
    equals.sort(key=lambda each: each.order(acceptance_kept=kept))
    others = sorted((each for each in best.values() if each not in equals), key=lambda each: -each.nats)
    return _sentence(equals, others[:1], total)


def _sentence(equals: Sequence[Explanation], others: Sequence[Explanation], total: float) -> str:
    first = equals[0]
    said = (
        "gives exactly the observed law"
        if first.exact
        else f"explains {100 * first.nats / total:.0f}% of the divergence"
    )
    place = {"draft": "where there is a draft", "bonus": "at the bonus"}.get(first.hypothesis.place, "")
    said += "".join(f" {where}" for where in (place, first.where) if where)
    said += f" in {100 * first.share:.2g}% of the cases" if first.share < 1 else ""
    if first.exact and total - first.nats > SAME * total:
        said += f", which is {100 * first.nats / total:.0f}% of the divergence"
    said += f"; so does {', '.join(each.hypothesis.name for each in equals[1:])}" if equals[1:] else ""
    said += "".join(f"; next {other.hypothesis.name}, {100 * other.nats / total:.0f}%" for other in others)
    return f"{first.hypothesis.name} ({first.hypothesis.family}) {said}: {first.hypothesis.explanation}"


def _best_by_name(
    places: Sequence[Place], weights: Floats, evidence: TokenEvidence, observed: Floats
) -> dict[str, Explanation]:
    """Every applicable hypothesis at its best variant, share and kind of places."""
    found: dict[str, Explanation] = {}
    kinds = _kinds(places)
    at_most = _nats(weights, observed, observed, evidence.target_probs)  # [N]
    for hypothesis in (*library(), *explanations_of_rounds()):
        mistaken = hypothesis.law(evidence)
        if mistaken is None:
            continue
        acts = _acts(hypothesis, places)
        masks = {where: acts & kind for where, kind in kinds.items()}
        # A mistake that is bet to act nearly always is none that acts seldom.
        for share in (share for share in SHARES if share >= min(hypothesis.shares) / 2):
            staked = evidence.target_probs + share * (mistaken - evidence.target_probs)  # [N, V]
            gains = _nats(weights, observed, staked, evidence.target_probs)  # [N]
            for where, mask in masks.items():
                nats, most = float(gains[mask].sum()), float(at_most[mask].sum())
                exact = share == 1 and most >= NO_ACCIDENT * at_most.sum() and most - nats <= SAME * most
                before = found.get(hypothesis.name)
                # A narrower explanation, found later, must explain more and not merely as much.
                if before is None or (exact, nats) > (
                    before.exact,
                    before.nats + (1e-12 if exact == before.exact else 0),
                ):
                    found[hypothesis.name] = Explanation(nats, hypothesis, share, where, exact)
    return found


def _nats(weights: Floats, observed: Floats, staked: Floats, target_probs: Floats) -> Floats:
    """What a bettor wins per output at each place, [N]: the expected log ratio of `staked` to the target as observed."""
    ratio = np.maximum(staked, 1e-300) / np.maximum(target_probs, 1e-300)
    gains: Floats = weights * np.where(observed > 0, observed * np.log(np.maximum(ratio, 1e-300)), 0.0).sum(-1)
    return gains


def _acts(hypothesis: Hypothesis, places: Sequence[Place]) -> Mask:
    """Where a mistake can act at all, [N]; where rounds were not seen, it can anywhere."""
    if hypothesis.place == "any":
        return np.ones(len(places), dtype=np.bool_)
    is_draft = hypothesis.place == "draft"
    return np.array(
        [
            place.start == UNKNOWN
            or (place.offset < place.num_drafted if is_draft else place.offset == place.num_drafted)
            for place in places
        ]
    )


def _kinds(places: Sequence[Place]) -> dict[str, Mask]:
    """Kinds of places to which a mistake may be restricted, by the words for them."""
    kinds = {WHEREVER: [True for _ in places], "after the first token": [bool(place.prefix) for place in places]}
    if all(place.start != UNKNOWN for place in places):
        kinds |= {
            "at the first place of a round": [place.offset == 0 for place in places],
            "behind the first place of a round": [place.offset > 0 for place in places],
            "at the last draft of a round": [place.offset == place.num_drafted - 1 for place in places],
            "from the second round on": [place.start > 0 for place in places],
            "in rounds with drafts": [place.num_drafted > 0 for place in places],
        }
    else:  # rounds are unknown, but the first token stands at the first place of one
        kinds |= {"at the first token": [not place.prefix for place in places]}
    return {where: np.array(mask) for where, mask in kinds.items()}


def _acceptance_kept(places: Mapping[Place, Following], evidence: TokenEvidence) -> bool | None:
    """Whether drafts were accepted as often as the standard rule would, min(target, draft); None where that was not seen."""
    if evidence.draft_probs is None:
        return None
    standard = np.minimum(evidence.target_probs, evidence.draft_probs).sum(-1)  # [N]
    differences = [
        abs(following.acceptance - expected)
        for (place, following), expected in zip(places.items(), standard, strict=True)
        if place.start != UNKNOWN and place.offset < place.num_drafted and not math.isnan(following.acceptance)
    ]
    return max(differences) <= SAME_ACCEPTANCE if differences else None


def _observed(followings: Sequence[Following], vocab_size: int) -> Floats:
    """The observed law at each place, [N, V]."""
    observed = np.zeros((len(followings), vocab_size))
    for row, following in enumerate(followings):
        for token_id, probability in following.token_probs.items():
            observed[row, token_id] = probability / following.reached
    return observed


def _evidence(subject: Subject, request: Request, places: Sequence[Place]) -> TokenEvidence:
    """The laws known at each place."""
    scored: Sequence[tuple[Request, tuple[int, ...]]] = [(request, (*place.prefix, 0)) for place in places]
    target_rows = list(subject.reference.logits_of(scored))
    laws: list[Floats] = []
    others: dict[str, list[Floats]] = defaultdict(list)
    for rows, place in zip(target_rows, places, strict=True):
        laws.append(array(next_token_laws(rows, request, place.prefix)[-1:]))
        alternatives = alternative_laws(rows, request, (*place.prefix, 0))
        if place.start != UNKNOWN:
            starts = [*range(place.start), *[place.start] * (rows.shape[0] - place.start)]
            alternatives |= history_alternatives(rows, request, (*place.prefix, 0), starts)
        for name, law_rows in alternatives.items():
            others[name].append(array(law_rows[-1:]))
    drafts: list[Floats] | None = None
    # Corrupt logits, or another vocabulary, are no law over the target's tokens to explain anything with.
    if subject.capabilities.draft_model and subject.draft_reference.vocab_size == subject.models.vocab_size:
        draft_rows = list(subject.draft_reference.logits_of(scored))
        drafts = [
            array(next_token_laws(rows, request, place.prefix)[-1:])
            for rows, place in zip(draft_rows, places, strict=True)
        ]
        if all(np.isfinite(law).all() for law in drafts):
            for rows, place in zip(draft_rows, places, strict=True):
                for name, law_rows in draft_alternatives(rows, request, (*place.prefix, 0)).items():
                    others[name].append(array(law_rows[-1:]))
        else:
            drafts = None
    if drafts is not None and all(place.start != UNKNOWN for place in places):
        others["one_coin"] = _one_coin(places, laws, drafts)
    return TokenEvidence(
        target_probs=np.concatenate(laws),
        token_ids=np.zeros(len(places), dtype=np.int64),
        draft_probs=None if drafts is None else np.concatenate(drafts),
        alternatives={name: np.concatenate(rows) for name, rows in others.items()},
    )


def _one_coin(places: Sequence[Place], laws: Sequence[Floats], drafts: Sequence[Floats]) -> list[Floats]:
    """At each place, the law if one coin decides about all drafts of a round: it is known to be below the earlier ratios."""
    known = {place: row for row, place in enumerate(places)}
    found = []
    for place, target, draft in zip(places, laws, drafts, strict=True):
        below = 1.0
        for position in range(place.start, len(place.prefix)):
            row = known[Place(place.prefix[:position], place.start, place.num_drafted)]
            token_id = place.prefix[position]
            below = min(below, laws[row][0, token_id] / max(drafts[row][0, token_id], 1e-300))
        accepted = np.minimum(draft, target / max(below, 1e-300))  # [1, V]
        excess = np.maximum(target - draft, 0)
        residual = excess / excess.sum() if excess.any() else target
        found.append(accepted + max(1 - accepted.sum(), 0.0) * residual)
    return found
