"""Exact law: run the decoder once per outcome of its randomness and compare the law of its output with the target's."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from verify.cases import EXACT_PATH_LIMIT, Case, shorter
from verify.checks.exact_diagnosis import diagnose_law
from verify.checks.exact_rounds import places_of, watched_places
from verify.exact.distance import product_law, total_variation
from verify.exact.elsewhere import NumpyGenerators
from verify.exact.enumeration import enumerate_outcomes
from verify.intake import Malformed, admit
from verify.judge import ContractViolation
from verify.results import Evidence, Finding, Verdict
from verify.subject import Subject, describe

Outputs = tuple[tuple[int, ...], ...]
NUMPY_GENERATORS = "numpy generators"
# Total variation that arithmetic alone may cause: float64 sums of a few terms, and float32 casts of logits.
BOUNDS: Mapping[str, float] = {"float64": 1e-12, "float32": 5e-7}
ROUNDED = (
    'no larger than the rounding of float32: if that is what it computes in, claim arithmetic="float32", the default'
)


def judge_exact_law(subject: Subject, case: Case, *, max_paths: int = EXACT_PATH_LIMIT) -> Finding:
    """Judge one case; several requests in a case must follow the product of their laws.

    A decoder that draws more than others (the target's token at every position, say) meets a shorter case where this one has
    more than `max_paths` outcomes.
    Guarantees: no false alarm and no missed error above the bound, which is that of the arithmetic the decoder claims.
    """
    bound = BOUNDS[subject.capabilities.arithmetic]
    requests = case.requests

    def run() -> Outputs:
        answers = subject.decoder.generate(requests)
        generations = admit(requests, answers, vocab_size=subject.models.vocab_size)
        return tuple(tuple(generation.token_ids) for generation in generations)

    def progress(paths: int, mass: float) -> None:
        subject.judge.progress(round(100 * mass), 100, f"per cent of the outcomes of {case.name!r}, {paths} paths")

    details: dict[str, Any] = {
        "case": case.name,
        "pair": case.spec.name,
        "requests": [describe(request) for request in requests],
        "bound": bound,
    }
    shared = subject.judge.shared
    if NUMPY_GENERATORS not in shared:
        shared[NUMPY_GENERATORS] = NumpyGenerators()
    try:
        found = enumerate_outcomes(run, max_paths=max_paths, progress=progress, generators=shared[NUMPY_GENERATORS])
    except Malformed as error:
        raise ContractViolation(str(error), details=details) from error
    except Exception as error:
        raise ContractViolation(
            f"generate raised {type(error).__name__} on one outcome of its randomness: {error}", details=details
        ) from error
    details |= {"paths": found.num_paths, "mass": found.mass}
    common: dict[str, Any] = {
        "evidence": Evidence.EXACT,
        "observations": found.num_paths,
        "unit": "paths",
        "details": details,
    }
    if found.refused:
        return Finding(
            verdict=Verdict.NOT_APPLICABLE,
            reason=f"the decoder draws with {found.refused}, which the exact law does not model; "
            "leave random values in tensors or take them out with .item()",
            **common,
        )
    less = shorter(case)
    if not found.complete and less is not None:
        return _said_to_be_shorter(judge_exact_law(subject, less, max_paths=max_paths), less)
    if not found.complete:
        return Finding(
            verdict=Verdict.INCONCLUSIVE,
            reason=f"too large: more than {max_paths} outcomes of the decoder's randomness",
            **common,
        )
    expected = product_law([subject.reference.sequence_law(request) for request in requests])
    if found.num_paths == 1 and len(expected) > 1:
        return Finding(
            verdict=Verdict.NOT_APPLICABLE,
            reason="the decoder's randomness is not visible to the suite (one path only); see the betting checks",
            **common,
        )
    distance = total_variation(expected, found.law)
    details |= {"total_variation": distance, "pictures": [_picture(expected, found.law)]}
    common |= {"smallest_visible": bound, "smallest_visible_unit": "TV"}
    if distance <= bound and abs(found.mass - 1) <= bound:
        return Finding(
            verdict=Verdict.PASS,
            reason=f"the law of the whole output is the target's: TV {distance:.1e} over {found.num_paths} paths",
            **common,
        )
    worst = max(expected.keys() | found.law.keys(), key=lambda o: abs(expected.get(o, 0.0) - found.law.get(o, 0.0)))
    wanted, observed = expected.get(worst, 0.0), found.law.get(worst, 0.0)
    details["worst_output"] = {"output": [list(each) for each in worst], "expected": wanted, "observed": observed}
    return Finding(
        verdict=Verdict.FAIL,
        reason=f"total variation {distance:.3g} from the target's law (allowed {bound:.0e}); output "
        f"{list(map(list, worst))} has probability {observed:.6g} instead of {wanted:.6g} ({observed - wanted:+.2g})",
        diagnosis=ROUNDED
        if distance <= BOUNDS["float32"]
        else _diagnosis(subject, case, found.law, max_paths=max_paths),
        **common,
    )


def _said_to_be_shorter(finding: Finding, case: Case) -> Finding:
    if "shortened" in finding.details:
        return finding
    asked = case.requests[0]
    words = (
        f"shortened to {asked.max_new_tokens} new tokens and drafts of {asked.num_draft_tokens}: "
        "the whole has too many outcomes"
    )
    return replace(finding, reason=f"{finding.reason} ({words})", details={**finding.details, "shortened": words})


def _picture(expected: Mapping[Outputs, float], observed: Mapping[Outputs, float]) -> dict[str, Any]:
    """The twelve most probable outputs, expected and observed."""
    shown = sorted(expected.keys() | observed.keys(), key=lambda output: -expected.get(output, 0.0))[:12]
    return {
        "kind": "law",
        "title": "Law of the output",
        "labels": [" | ".join(" ".join(map(str, output)) for output in outputs) for outputs in shown],
        "expected": [expected.get(outputs, 0.0) for outputs in shown],
        "observed": [observed.get(outputs, 0.0) for outputs in shown],
    }


def _diagnosis(subject: Subject, case: Case, law: Mapping[Outputs, float], *, max_paths: int) -> str:
    """Explain the first request whose own law is wrong; where each is right alone, they are not independent.

    The rounds of a single request are watched in a second enumeration, so that the first is of a decoder left alone.
    """
    for index, request in enumerate(case.requests):
        marginal: dict[tuple[int, ...], float] = defaultdict(float)
        for outputs, probability in law.items():
            marginal[outputs[index]] += probability
        if total_variation(subject.reference.sequence_law(request), marginal) > BOUNDS[subject.capabilities.arithmetic]:
            watched = None
            if len(case.requests) == 1:
                known = subject.judge.shared.get(NUMPY_GENERATORS)
                watched = watched_places(subject, request, max_paths=max_paths, generators=known)
            return diagnose_law(subject, request, watched or places_of(marginal))
    return (
        "each request follows its law alone, but not together: randomness or state is shared in the batch (BATCH, RNG)"
    )
