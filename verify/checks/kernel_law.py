"""The rejection step by betting: counts of whole blocks against laws known exactly."""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from scipy.stats import poisson

from verify.intake import Malformed
from verify.judge import ContractViolation
from verify.kernel.block import Kernel, KernelRaised
from verify.kernel.counts import LEARNED, CountBet
from verify.kernel.experiment import CALLS_BETWEEN_LOOKS, FEWEST_OUTCOMES, Experiment
from verify.kernel.rules import EXPLANATIONS, LEAK
from verify.results import Evidence, Finding, Verdict

Result = TypeVar("Result")
# The error whose visibility is stated: unverified drafts or, where the draft is the target, a bonus from the draft.
STATED = {LEAK: "draft_leak", "bonus_from_draft": "bonus_from_draft", "identical": "copied outcome"}
# A slow step is asked on, while it has the time, until an error of this TV would be seen, and every mistake that makes as much.
SOUGHT = 0.05
UNITS = {"": "blocks", "rows": "pairs of rows", "calls": "pairs of calls", "places": "pairs of tokens of a block"}
# Ids that come at most at this share of their law, which chance hardly explains, are lost.
LOST, CHANCE = 0.25, 1e-4
_LN10 = float(np.log(10))


def kept_contract(call: Callable[[], Result]) -> Result:
    """The result of a call of the step; what it raises, and a bad answer, become contract violations."""
    try:
        return call()
    except (KernelRaised, Malformed) as error:
        raise ContractViolation(str(error)) from error


def judge_block_law(
    kernel: Kernel,
    experiment: Experiment,
    *,
    alpha: float,
    num_outcomes: int,
    seconds: float,
    progress: Callable[[int, int, str], None],
    may_refuse: bool = False,
) -> Finding:
    """Bet on the outcomes of an experiment until rejection, `num_outcomes` or `seconds`.

    A slow step is asked for fewer rows a call and given more time (`Experiment.run`); what it has shown by then is judged.
    `may_refuse`: raising is an answer (the laws handed over are none). Guarantee: a lossless step fails with probability at
    most `alpha`, whatever its acceptance rule; `experiment.joint` needs the standard rule.
    """
    try:
        experiment = experiment.paced(kernel, seconds=seconds / CALLS_BETWEEN_LOOKS)
        bet = experiment.run(
            kernel,
            alpha=alpha,
            num_outcomes=num_outcomes,
            seconds=seconds,
            enough=_shows_enough,
            progress=lambda done: progress(done, num_outcomes, "blocks"),
        )
    except KernelRaised as error:
        if not may_refuse:
            raise ContractViolation(str(error)) from error
        return Finding(
            verdict=Verdict.PASS,
            evidence=Evidence.BETTING,
            reason=f"refused: {error}",
            observations=1,
            unit="refusals",
        )
    except Malformed as error:
        raise ContractViolation(str(error)) from error
    return conclusion(bet, experiment, alpha=alpha)


def conclusion(bet: CountBet, experiment: Experiment, *, alpha: float) -> Finding:
    """The verdict on the counts of an experiment."""
    unit = UNITS[experiment.pairs]
    name, visible = _certificate(bet)
    common: dict[str, Any] = {
        "evidence": Evidence.BETTING,
        "observations": bet.num_outcomes,
        "unit": unit,
        "false_alarm": alpha,
        "smallest_visible": visible,
        "smallest_visible_unit": f"TV ({STATED[name]})" if name else "",
        "details": {
            "log10_wealth": bet.largest_log_wealth / _LN10,
            "pictures": [_picture(bet)],
            "rows_per_call": experiment.num_rows,
            "dtype": str(experiment.dtype),
        },
    }
    if bet.rejected:
        return Finding(
            verdict=Verdict.FAIL, reason=_reason(bet, experiment, unit), diagnosis=_diagnosis(bet, experiment), **common
        )
    if visible is None or bet.num_outcomes < FEWEST_OUTCOMES:
        return Finding(
            verdict=Verdict.INCONCLUSIVE,
            reason=f"nothing wrong in {bet.num_outcomes} {unit}, but they are too few to see even a whole leak",
            **common,
        )
    return Finding(
        verdict=Verdict.PASS,
        reason=f"{bet.num_outcomes} {unit} follow their law; an error of TV {visible:.2g} ({STATED[name]}) would have been "
        "seen with probability 0.95",
        **common,
    )


def _certificate(bet: CountBet) -> tuple[str, float | None]:
    """The error whose visibility is stated, and the smallest size of it that would have been seen."""
    return next(
        ((name, size) for name in STATED if name in bet.names and (size := bet.visible(name)) is not None), ("", None)
    )


def _shows_enough(bet: CountBet) -> bool:
    visible = _certificate(bet)[1]
    return (
        visible is not None
        and visible <= SOUGHT
        and all(bet.distance(name) < SOUGHT or bet.visible(name) is not None for name in bet.names)
    )


def _reason(bet: CountBet, experiment: Experiment, unit: str) -> str:
    if bet.impossible is not None:
        table, outcome = bet.impossible
        return f"outcome {_label(bet, experiment, table, outcome)} occurred although its probability is 0"
    return (
        f"{unit} do not follow their law: a bet against it grew to 10^{bet.largest_log_wealth / _LN10:.1f} after "
        f"{bet.rejected_after} (the alarm is at 10^{-np.log10(bet.alpha):.1f})"
    )


def _label(bet: CountBet, experiment: Experiment, table: int, outcome: int) -> str:
    if experiment.pairs:
        return str(outcome)
    length = experiment.lengths[table % len(experiment.lengths)]
    base = experiment.settings[0].rows.num_classes
    shape = [*([length + 1] if experiment.joint else []), *[base] * (length + 1)]
    # A code has as many digits as the block has tokens; the number of accepted drafts leads it.
    place = [int(each) for each in np.unravel_index(outcome, shape)]
    tokens = place[1:] if experiment.joint else place
    names = "classes" if base < experiment.settings[0].rows.target.shape[1] else "tokens"
    accepted = f" with {place[0]} accepted" if experiment.joint else ""
    return f"{names} {tokens}{accepted} of {length} drafts"


def _diagnosis(bet: CountBet, experiment: Experiment) -> str:
    if experiment.pairs == "places":
        return "tokens of one block share their coins: look at how uniforms are indexed by position (RNG)"
    if experiment.pairs:
        return "rows share their coins, or calls repeat them (RNG, BATCH)"
    if bet.impossible is not None:
        return "a token that the target cannot emit was emitted: look at `<=`, at 0/0 and at the residual (ACC, RES, VOCAB)"
    ranking = sorted(bet.posterior().items(), key=lambda item: -item[1])
    name, best = ranking[0]
    if name == LEARNED:
        lost = _lost(bet, experiment)
        if lost:
            return lost
        rows = "; rows with other laws were beside it: look at the row index (BATCH)"
        return f"no catalogued mistake explains the counts{rows if len(experiment.settings) > 1 else ''}"
    odds = best / ranking[1][1] if ranking[1][1] > 0 else float("inf")
    shown = f"{odds:.1f}" if odds < 1e3 else f"{odds:.0e}"
    return f"{name} (odds {shown} against {ranking[1][0]}): {EXPLANATIONS[name]}"


def _lost(bet: CountBet, experiment: Experiment) -> str:
    """The class of tokens that is missing most, at any place of any block, if it is hardly ever emitted; "" otherwise."""
    rows = experiment.settings[0].rows
    least, told = CHANCE, ""
    for index, (table, counts) in enumerate(zip(bet.tables, bet.counts, strict=True)):
        width = experiment.lengths[index % len(experiment.lengths)] + 1
        if experiment.joint or table.law.size != rows.num_classes**width:
            return ""
        shape = (rows.num_classes,) * width
        for place in range(width):
            others = tuple(axis for axis in range(width) if axis != place)
            expected = table.law.reshape(shape).sum(others) * counts.sum()
            seen = counts.reshape(shape).sum(others)
            chances = poisson.cdf(seen, expected)
            for each in np.flatnonzero(seen < LOST * expected):
                ids = np.flatnonzero(rows.classes == each)
                if chances[each] < least and ids[-1] - ids[0] == len(ids) - 1:
                    named = f"token {ids[0]}" if len(ids) == 1 else f"tokens {ids[0]} to {ids[-1]}"
                    least = float(chances[each])
                    told = (
                        f"{named} came {seen[each]} times where {expected[each]:.0f} were expected: look at the end of the "
                        "vocabulary, at its last tile and at the width of ids (VOCAB)"
                    )
    return told


def _picture(bet: CountBet) -> dict[str, Any]:
    """The twelve most probable outcomes of the table with the most counts."""
    index = int(np.argmax([counts.sum() for counts in bet.counts]))
    law, counts = bet.tables[index].law, bet.counts[index]
    shown = np.argsort(-law, kind="stable")[:12]
    return {
        "kind": "law",
        "title": "Law of the blocks",
        "labels": [str(int(each)) for each in shown],
        "expected": [float(law[each]) for each in shown],
        "observed": [float(counts[each] / max(1, counts.sum())) for each in shown],
    }
