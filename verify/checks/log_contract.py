"""A log where no chance is involved: readable lines, stopping, records, and signs of speculation."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from verify.checks.accounting import judge_record
from verify.checks.log_audit import Audit, Logged
from verify.intake import Malformed, admit, admit_record
from verify.judge import NotApplicable
from verify.results import Evidence, Finding, Verdict
from verify.subject import describe

SHOWN = 10


def judge_readable(audit: Audit) -> Finding:
    """Every line could be read and scored; else an error, which no run passes with, and the other lines are judged still."""
    broken = sorted([*audit.log.broken, *audit.unscored])
    good = len(audit.lines) + len(audit.foreign)
    details = {
        "broken_lines": [{"line": number, "reason": reason} for number, reason in broken],
        "lines_on_other_models": audit.log.elsewhere,
    }
    if broken or not good:
        reason = f"{len(broken)} of {good + len(broken)} lines cannot be judged: {_by_reason(broken)}"
        return Finding(
            verdict=Verdict.ERROR,
            evidence=Evidence.CONTRACT,
            reason=reason if broken else "the log holds no generation on this target",
            observations=good,
            unit="lines",
            details=details,
        )
    return Finding(
        verdict=Verdict.PASS,
        evidence=Evidence.CONTRACT,
        reason=f"{good} lines read",
        observations=good,
        unit="lines",
        smallest_visible=1.0,
        smallest_visible_unit="broken line",
        details=details,
    )


def _by_reason(broken: Sequence[tuple[int, str]]) -> str:
    """Each reason once, with the first line that has it."""
    first = dict(reversed([(reason, number) for number, reason in broken]))
    counts = Counter(reason for _, reason in broken)
    told = [
        f"line {number}{f' and {counts[reason] - 1} more' if counts[reason] > 1 else ''}: {reason}"
        for reason, number in sorted(first.items(), key=lambda item: item[1])
    ]
    return "; ".join(told[:SHOWN]) + (f"; and {len(told) - SHOWN} other reasons" if len(told) > SHOWN else "")


def judge_contract(audit: Audit) -> Finding:
    """Lengths, stop tokens and finish reasons, one value a token, and ids inside the vocabulary."""
    return _each_line(
        audit,
        [*audit.lines, *audit.foreign],
        lambda each: _admit(each, audit.subject.models.vocab_size),
        unit="lines",
        diagnosis="an accepted block was cut too late or too early (STOP, LEN), or ids are mapped wrongly (VOCAB)",
        smallest="wrong line",
    )


def judge_records(audit: Audit) -> Finding:
    """The identities of every record, and its tokens against the output."""
    lines = [each for each in audit.lines if each.answer.generation.record is not None]
    if not lines:
        raise NotApplicable("no line holds a record")
    identities = _each_line(
        audit,
        lines,
        lambda each: admit_record(each.answer.generation.record),
        unit="records",
        diagnosis="the acceptance accounting is wrong (STAT)",
        smallest="miscounted token or round",
    )
    return identities if identities.verdict is Verdict.FAIL else judge_record([each.answer for each in lines])


def judge_speculation_shown(audit: Audit) -> Finding:
    """Records or roles show accepted and rejected drafts, in greedy and in sampled lines, whichever there are."""
    kinds = {"greedy": audit.of_kind(greedy=True), "sampled": audit.of_kind(greedy=False)}
    return speculation_shown(
        {
            kind: [drafts_of(each.counts, each.answer.generation.roles) for each in lines]
            for kind, lines in kinds.items()
        }
    )


def speculation_shown(signs: Mapping[str, Sequence[tuple[int, int]]]) -> Finding:
    """The verdict on (accepted, rejected) drafts, one pair an output, of each kind of output."""
    shown: Counter[str] = Counter()
    missing = []
    for kind, counts in signs.items():
        accepted, rejected = (sum(column) for column in zip((0, 0), *counts, strict=True))
        shown[f"{kind}: accepted drafts"] += accepted
        shown[f"{kind}: rejected drafts"] += rejected
        if counts:
            missing += [f"{kind} lines show no accepted draft"] if not accepted else []
            missing += [f"{kind} lines show no rejected draft"] if not rejected else []
    observed = sum(shown.values())
    missing += [] if observed or missing else ["no line shows a draft"]
    return Finding(
        verdict=Verdict.INCONCLUSIVE if missing else Verdict.PASS,
        evidence=Evidence.CONTRACT,
        reason=f"{'; '.join(missing)}: log `record` or `roles`, or prompts on which the engine accepts and rejects drafts"
        if missing
        else f"{', '.join(f'{name} {count}' for name, count in shown.items())}, in the logged records and roles",
        observations=observed,
        unit="draft tokens",
        details={"pictures": [{"kind": "coverage", "title": "Drafts as logged", "counts": dict(shown)}]},
    )


def drafts_of(counts: tuple[int, int] | None, roles: Sequence[str] | None) -> tuple[int, int]:
    """Accepted and rejected drafts of an output by its own (drafted, accepted), or else by its roles."""
    if counts is not None:
        drafted, accepted = counts
        return accepted, max(0, drafted - accepted)
    seen = Counter(roles or ())
    return seen["accepted"], seen["recovered"]


def _admit(each: Logged, vocab_size: int) -> object:
    return admit([each.request], [replace(each.answer.generation, record=None)], vocab_size=vocab_size)


def _each_line(
    audit: Audit,
    lines: Sequence[Logged],
    admitted: Callable[[Logged], object],
    *,
    unit: str,
    diagnosis: str,
    smallest: str,
) -> Finding:
    """Every line through a gate that raises `Malformed`."""
    problems = []
    for each in lines:
        try:
            admitted(each)
        except Malformed as error:
            problems.append((each, str(error)))
    if problems:
        each, message = problems[0]
        return Finding(
            verdict=Verdict.FAIL,
            evidence=Evidence.CONTRACT,
            reason=f"line {each.number}: {message} ({len(problems)} of {len(lines)} {unit})",
            observations=len(lines),
            unit=unit,
            diagnosis=diagnosis,
            details={
                "request": describe(each.request),
                "broken": [{"line": one.number, "problem": text} for one, text in problems[:100]],
            },
        )
    if not lines:
        raise NotApplicable(f"no {unit} to judge")
    return Finding(
        verdict=Verdict.PASS,
        evidence=Evidence.CONTRACT,
        reason=f"{len(lines)} {unit} keep the contract",
        observations=len(lines),
        unit=unit,
        smallest_visible=1.0,
        smallest_visible_unit=smallest,
    )
