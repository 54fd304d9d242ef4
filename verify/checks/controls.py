"""Controls that tell logic from rounding in greedy decoding."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from verify.greedy.controls import first_divergence
from verify.models.law import processed_logits
from verify.protocol import Request
from verify.results import Evidence, Finding, Verdict
from verify.subject import Subject, describe


def judge_draft_length_invariance(
    subject: Subject, requests: Sequence[Request], *, lengths: Sequence[int], floor: float
) -> Finding:
    """The output may change with the number of draft tokens only at a near tie of the target.

    At the first index where two draft lengths differ, the target's gap between the two tokens must lie below twice the
    measured floor; a larger gap means that the block, not the arithmetic, decided.
    """
    compared = 0
    ties: list[dict[str, Any]] = []
    for request in requests:
        outputs = {
            length: subject.generate([replace(request, num_draft_tokens=length)])[0].token_ids for length in lengths
        }
        base = outputs[lengths[0]]
        for length in lengths[1:]:
            compared += 1
            index = first_divergence(base, outputs[length])
            if index is None:
                continue
            rows = subject.reference.logits(request, base[: index + 1])
            scores = processed_logits(rows, request, base[: index + 1])[-1]
            gap = abs(float(scores[base[index]] - scores[outputs[length][index]]))
            entry = {"request": describe(request), "draft_lengths": [lengths[0], length], "index": index, "gap": gap}
            if gap > 2 * floor:
                return Finding(
                    verdict=Verdict.FAIL,
                    evidence=Evidence.GREEDY,
                    reason=f"with {length} instead of {lengths[0]} draft tokens the output changes at position {index}, "
                    f"where the target's logit gap is {gap:.3g} (noise floor allows {2 * floor:.2g})",
                    observations=compared,
                    unit="outputs",
                    diagnosis="the divergence moves with the draft length: acceptance, rollback or row indexing",
                    details={"divergence": entry},
                )
            ties.append(entry)
    note = f"; {len(ties)} change at near ties" if ties else ""
    return Finding(
        verdict=Verdict.PASS,
        evidence=Evidence.GREEDY,
        reason=f"{compared} outputs do not depend on the number of draft tokens{note}",
        observations=compared,
        unit="outputs",
        smallest_visible=1.0,
        smallest_visible_unit="wrong token",
        details={"near_ties": ties},
    )
