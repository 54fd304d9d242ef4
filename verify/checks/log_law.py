"""A log against its target: greedy identity, the sampled law, log-probabilities, and lines that depend on each other."""

from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from verify.betting.evidence import TokenEvidence
from verify.checks.greedy_identity import judge_identity
from verify.checks.log_audit import Audit, Logged, request_key, truncates, untruncated
from verify.checks.logprobs import judge_logprobs
from verify.checks.sampled_law import CALLS_BETWEEN_LOOKS, judge_sampled_law
from verify.checks.seeded_pairs import SeededPair, judge_seeded_pairs
from verify.coverage import Coverage
from verify.judge import NotApplicable
from verify.log.truncation import decided
from verify.models.law import next_token_laws
from verify.protocol import Request
from verify.results import Evidence, Finding, Verdict
from verify.scoring import array, rows
from verify.subject import Observed, describe

# A log that could not show that a quarter of its tokens are wrong is no evidence of losslessness.
PROMISED_TV = 0.25


def judge_greedy(audit: Audit) -> Finding:
    """Greedy lines by teacher forcing, with the noise floor measured on texts of the log."""
    lines = audit.of_kind(greedy=True)
    if not lines:
        raise NotApplicable("no line is greedy")
    finding = judge_identity(
        audit.subject,
        [each.answer for each in lines],
        floor=audit.floor(lines),
        coverage=_coverage(lines),
    )
    return _with_line(finding, lines)


def judge_sampled(audit: Audit, *, alpha: float) -> Finding:
    """Sampled lines by betting. Half of `alpha` pays for taking repeated outputs for copies.

    Lines that share a seed, and copies, count once; positions where rounding decides what truncation keeps do not count.
    """
    lines = audit.of_kind(greedy=False)
    if not lines:
        raise NotApplicable("no line is sampled")
    kept = audit.independent(lines, alpha=alpha / 2)
    tolerance = audit.tolerance(kept)
    undecided = Counter[str]()
    ends = [0]  # of the judged tokens of each line

    def select(each: Observed, evidence: TokenEvidence) -> TokenEvidence | None:
        chosen: Sequence[int] = range(evidence.num_tokens)
        if truncates(each.request):
            chosen = decided(evidence.alternatives["no_truncation"], each.request.sampling, slack=tolerance)
        undecided["positions"] += evidence.num_tokens - len(chosen)
        ends.append(ends[-1] + len(chosen))
        return evidence if len(chosen) == evidence.num_tokens else rows(evidence, chosen)

    def in_turn() -> Iterator[Sequence[Observed]]:
        for start in range(0, len(kept), CALLS_BETWEEN_LOOKS):
            audit.subject.judge.progress(start, len(kept), "sampled lines")
            yield [each.scorable for each in kept[start : start + CALLS_BETWEEN_LOOKS]]

    finding = judge_sampled_law(
        audit.subject, in_turn(), alpha=alpha / 2, tolerance=tolerance, coverage=Coverage(), select=select
    )
    details = finding.details | {
        "lines": len(lines),
        "dependent_lines_left_out": len(lines) - len(kept),
        "positions_undecided_by_rounding": undecided["positions"],
    }
    left_out = f"; {len(lines) - len(kept)} of {len(lines)} lines share a seed or repeat one and were left out"
    reason = finding.reason + (left_out if len(kept) < len(lines) else "")
    if "impossible_at" in details:
        reason = f"line {kept[bisect(ends, details['impossible_at']) - 1].number}: {reason}"
    finding = replace(finding, false_alarm=alpha, details=details, reason=reason)
    if finding.verdict is Verdict.PASS and (finding.smallest_visible or 1.0) > PROMISED_TV:
        reason = f"too few independent tokens to see an error of TV {PROMISED_TV}: {reason}"
        return replace(finding, verdict=Verdict.INCONCLUSIVE, reason=reason)
    return finding


def judge_logged_logprobs(audit: Audit) -> Finding:
    """Logged log-probabilities; of lines with truncation only those where rounding cannot change what is kept."""
    lines = [each for each in audit.lines if each.answer.generation.logprobs is not None]
    if not lines:
        raise NotApplicable("no line holds log-probabilities")
    raw = audit.subject.capabilities.logprobs == "raw"
    tolerance = audit.tolerance([] if raw else lines)
    chosen = [each for each in lines if raw or _is_decided(audit, each, tolerance)]
    if not chosen:
        return Finding(
            verdict=Verdict.INCONCLUSIVE,
            evidence=Evidence.CONTRACT,
            reason=f"in each of {len(lines)} lines rounding decides what truncation keeps",
        )
    sized = [each for each in chosen if len(each.answer.generation.logprobs or ()) == len(each.token_ids)]
    return _with_line(judge_logprobs(audit.subject, [each.answer for each in sized], tolerance=tolerance), sized)


def judge_reproduced(audit: Audit) -> Finding:
    """A request that was asked again with its seed gave the same output."""
    groups: dict[Request, list[Logged]] = defaultdict(list)
    for each in audit.of_kind(greedy=False):
        if each.request.seed is not None:
            groups[request_key(each.request)].append(each)
    pairs = [
        SeededPair(
            first.request,
            first.token_ids,
            again.token_ids,
            names=(f"line {first.number}", f"line {again.number}"),
            told=f"lines {first.number} and {again.number} ask the same with seed {first.request.seed}, and",
        )
        for first, *others in groups.values()
        for again in others
    ]
    if not pairs:
        raise NotApplicable("no request is repeated with its seed")
    return judge_seeded_pairs(
        pairs,
        audit=audit,
        noun="repeated requests",
        unit="repeated requests",
        same=f"{len(pairs)} requests repeated with their seeds gave the same outputs",
        diagnosis="the request's seed is not the only source of its randomness (RNG); where the engine does not promise "
        "reproduction, leave `seed` out of the log, or do not claim `seeds`",
    )


def judge_fresh(audit: Audit, *, alpha: float) -> Finding:
    """A request that was asked again without a seed gave another output, where chance hardly repeats it."""
    lines = [each for each in audit.of_kind(greedy=False) if each.request.seed is None]
    groups = Counter(request_key(each.request) for each in lines)
    repeated = sum(count for count in groups.values() if count > 1)
    if not repeated:
        raise NotApplicable("no request is repeated without a seed")
    copies = audit.copies(lines, alpha=alpha)
    failed = bool(copies)
    reason = f"{repeated} lines repeat a request without a seed, and no output comes again that chance hardly repeats"
    if failed:
        first = copies[0]
        reason = (
            f"lines {first.first} and {first.second} hold the same {first.num_tokens} tokens without a seed; chance "
            f"{first.chance:.1e} ({len(copies)} such pairs)"
        )
    return Finding(
        verdict=Verdict.FAIL if failed else Verdict.PASS,
        evidence=Evidence.BETTING,
        reason=reason,
        observations=repeated,
        unit="lines",
        false_alarm=alpha,
        smallest_visible=1.0,
        smallest_visible_unit="copied output",
        diagnosis="the engine reseeds with a constant (RNG), or the log holds lines twice: remove them"
        if failed
        else "",
    )


def _coverage(lines: Sequence[Logged]) -> Coverage:
    coverage = Coverage()
    for each in lines:
        coverage.add_record(each.answer.generation.record)
    return coverage


def _is_decided(audit: Audit, each: Logged, slack: float) -> bool:
    if not truncates(each.request):
        return True
    logits = audit.subject.reference.logits(each.request, each.token_ids)
    law = array(next_token_laws(logits, untruncated(each.request), each.token_ids))
    return len(decided(law, each.request.sampling, slack=slack)) == len(each.token_ids)


def _with_line(finding: Finding, lines: Sequence[Logged]) -> Finding:
    """A failure with the number of the first line that has the request it names."""
    details = finding.details
    request = details.get("request") or details.get("first_divergence", {}).get("request")
    if finding.verdict is not Verdict.FAIL or request is None:
        return finding
    output = details.get("token_ids") or details.get("first_divergence", {}).get("output")
    number = next(
        (e.number for e in lines if describe(e.request) == request and list(e.token_ids)[:64] == list(output)[:64]),
        None,
    )
    return finding if number is None else replace(finding, reason=f"line {number}: {finding.reason}")
