"""The words that reports use for chapters, verdicts, evidence and exit codes: one place, so that all reports agree."""

import re
from collections import Counter

from verify.report.schema import Results, RunVerdict
from verify.results import Evidence, Verdict

UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

CHAPTERS: dict[int, str] = {
    1: "Greedy identity and ties",
    2: "Exact law",
    3: "Sampled law",
    4: "Processors see the true history",
    5: "Stopping",
    6: "State and rollback",
    7: "Batches",
    8: "Randomness",
    9: "Support",
    10: "Acceptance",
    11: "Log-probabilities",
    12: "Scheduling",
    13: "Unclaimed features raise",
    14: "Streaming and cancellation",
    15: "Correct unusual designs pass",
    16: "The rejection step alone",
    17: "A log of generations",
    18: "An engine, asked and audited",
}

MARKS: dict[Verdict, str] = {
    Verdict.PASS: "✓",
    Verdict.FAIL: "✗",
    Verdict.INCONCLUSIVE: "?",
    Verdict.NOT_APPLICABLE: "-",
    Verdict.ERROR: "!",
    Verdict.WAIVED: "w",
}

VERDICTS: dict[Verdict, str] = {
    Verdict.PASS: "no error found; the smallest error that would have been found is stated",
    Verdict.FAIL: "the decoder breaks this property",
    Verdict.INCONCLUSIVE: "too little data or a path never reached: neither pass nor fail",
    Verdict.NOT_APPLICABLE: "nothing to judge here, with the reason; not a pass",
    Verdict.ERROR: "the check itself broke; nothing was judged",
    Verdict.WAIVED: "fails, and the implementer's --xfails file expects it",
}

EVIDENCE: dict[Evidence, str] = {
    Evidence.EXACT: "the law is computed over every random outcome; no sampling error",
    Evidence.GREEDY: "emitted tokens are compared with the target's own arg max and the measured rounding noise",
    Evidence.CONTRACT: "a stated rule was kept or broken; no chance involved",
    Evidence.BETTING: "sequential bets against the target's law; the false-alarm probability holds whenever one stops",
    Evidence.TWO_SAMPLE: "two sets of outputs are compared, without reference probabilities; weaker",
    Evidence.TIMING: "a measurement of time; depends on the machine",
}

EXIT_MEANINGS: dict[int, str] = {
    0: "pass",
    1: "fail: the decoder is not lossless, or breaks its contract",
    4: "usage error: nothing ran",
    10: "inconclusive: a required check could not decide",
    11: "incomplete: a required check did not run",
}


def chapter_title(number: int) -> str:
    """A chapter's title; house suites may use numbers of their own."""
    return CHAPTERS.get(number, f"Chapter {number}")


def headline(results: Results) -> str:
    """What the run's verdict means, with its false-alarm probability; and where no exact law could be taken."""
    chance = f"{results.false_alarm:g}"
    waived = len(results.waived)
    apart = f"Apart from {waived} waived {'failure' if waived == 1 else 'failures'}, no" if waived else "No"
    meanings: dict[RunVerdict, str] = {
        "pass": (
            f"{apart} check found a difference from the target model. Each check states the smallest error that "
            f"it would have seen; a lossless decoder fails such a run with probability at most {chance}."
        ),
        "fail": (
            "This decoder is not lossless or breaks its contract. A lossless decoder that keeps its contract fails "
            f"such a run with probability at most {chance}."
        ),
        "inconclusive": (
            f"{apart} check failed, but a required one could not decide: this is no evidence of losslessness. "
            f"A lossless decoder fails such a run with probability at most {chance}."
        ),
        "incomplete": (
            f"{apart} check failed, but a required one did not run: the decoder was not judged. "
            f"A lossless decoder fails such a run with probability at most {chance}."
        ),
    }
    return meanings[results.verdict] + (out_of_sight(results) if results.verdict != "fail" else "")


def out_of_sight(results: Results) -> str:
    """That some of the decoder's randomness could not be enumerated, and why; "" where all could."""
    exact = [each for each in results.checks if each.details.unit == "paths"]
    unseen = Counter(each.reason for each in exact if each.verdict is Verdict.NOT_APPLICABLE)
    if not unseen:
        return ""
    [(reason, _)] = unseen.most_common(1)
    return (
        f" {unseen.total()} of {len(exact)} exact laws were NOT judged ({reason}): there the law rests on bets, "
        "which see much less."
    )


def printable(text: str) -> str:
    r"""Control characters and lone surrogates written out as `\x1b`: XML cannot hold them, terminals and pages obey them."""
    return UNPRINTABLE.sub(lambda match: f"\\x{ord(match.group()):02x}", text)


def number(value: float | None, unit: str = "") -> str:
    """A number for a table: four significant digits and its unit; an em dash where there is none."""
    return "—" if value is None else f"{value:.4g} {unit}".strip()


def verdict_word(verdict: Verdict) -> str:
    """A verdict as people read it."""
    return verdict.value.replace("_", " ")
