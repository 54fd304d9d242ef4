"""Whether a schedule is at work: blocks of unequal length although the same number of drafts was asked for."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from verify.results import Evidence, Finding, Verdict
from verify.subject import Observed


def judge_lengths(answers: Sequence[Observed]) -> Finding:
    """Count the lengths of verified blocks, as the target saw them, that neither request nor end of output explains.

    Observations are rounds in which all `num_draft_tokens` would have fitted. One length only is inconclusive: the decoder
    claims a schedule, and nothing that was judged has shown one.
    """
    lengths: Counter[int] = Counter()
    for each in answers:
        for one in each.rounds or ():
            if each.request.max_new_tokens - one.output_offset > each.request.num_draft_tokens:
                lengths[one.num_draft_tokens] += 1
    total = lengths.total()
    shown = ", ".join(f"{count} with {length}" for length, count in sorted(lengths.items()))
    common: dict[str, Any] = {
        "evidence": Evidence.CONTRACT,
        "observations": total,
        "unit": "rounds",
        "details": {"lengths": dict(sorted(lengths.items()))},
    }
    if len(lengths) < 2:
        what = f"all blocks have one length ({shown})" if lengths else "no round could be seen from the target"
        return Finding(
            verdict=Verdict.INCONCLUSIVE, reason=f"a schedule is claimed, but {what}: no schedule was judged", **common
        )
    return Finding(verdict=Verdict.PASS, reason=f"blocks of unequal length were verified (rounds: {shown})", **common)
