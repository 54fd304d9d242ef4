"""Chapter 7: a request's answer does not depend on the other requests of its batch.

The product law of two sampled requests is judged exactly in chapter 2.
"""

from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any

import pytest

from verify.checks.greedy_identity import judge_identity
from verify.coverage import Coverage
from verify.judge import Judge, NotApplicable, check
from verify.models.pairs import Relation, TableSpec
from verify.protocol import Request
from verify.results import Evidence
from verify.subject import Observed
from verify.suite.support import greedy, noise_floor, prompts, request, table_subject, trained_prompts, trained_subject

SPEC = TableSpec(vocab_size=48, relation=Relation.CLOSE, seed=701, num_rows=4096, sharpness=2.0)
LENGTHS = (1, 2, 4, 7, 11)
# A small vocabulary: the same tokens come again, so that penalties act.
SMALL = TableSpec(vocab_size=12, relation=Relation.CLOSE, seed=702, num_rows=4096)
PROCESSORS: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 1.6},
    "presence_penalty": {"presence_penalty": 1.1},
    "frequency_penalty": {"frequency_penalty": 0.7},
    "logit_bias": {"logit_bias": {0: 3.0, 5: -4.0, 7: 2.0}},
    "forbidden_tokens": {"forbidden_token_ids": (2, 3, 7)},
}


def conclude(
    judge: Judge,
    asked: Sequence[Request],
    *,
    trained: bool = False,
    judged: Sequence[int] | None = None,
    spec: TableSpec = SPEC,
) -> None:
    """Answer in one call and judge every row (or the rows `judged`) against the target alone."""
    subject = trained_subject(judge) if trained else table_subject(judge, spec)
    subject.require("batch")
    for each in asked:
        subject.require_for(each)
    coverage = Coverage()
    generations = subject.generate(asked)
    for generation in generations:
        coverage.add_record(generation.record)
    answers = [Observed(each, generation, None) for each, generation in zip(asked, generations, strict=True)]
    if judged is not None:
        answers = [answers[index] for index in judged]
    floor = noise_floor(judge) if trained else 0.0
    judge.conclude(judge_identity(subject, answers, floor=floor, coverage=coverage))


@check(chapter=7, property="ragged batch", evidence=Evidence.GREEDY)
@pytest.mark.parametrize("size", [2, 5, 16])
def test_ragged_prompts(judge: Judge, size: int) -> None:
    """Prompts of unequal length with unequal acceptance: every row advances by its own count."""
    chosen = prompts(judge, size, vocab_size=SPEC.vocab_size, lengths=LENGTHS)
    conclude(judge, [greedy(prompt, max_new_tokens=24) for prompt in chosen])


@check(chapter=7, property="ragged batch", evidence=Evidence.GREEDY)
def test_ragged_prompts_on_trained_pair(judge: Judge) -> None:
    """The same on a real target, where padding must not reach attention."""
    chosen = trained_prompts(judge, 6)
    conclude(judge, [greedy(prompt, max_new_tokens=24) for prompt in chosen], trained=True)


@check(chapter=7, property="more requests than run at once", evidence=Evidence.GREEDY, minimum_profile="default")
def test_many_requests(judge: Judge) -> None:
    """Far more requests than an engine keeps running: those that wait, are preempted or come back answer like any other.

    Some share their beginning, and they end at different times.
    """
    chosen = prompts(judge, 24, vocab_size=SPEC.vocab_size, lengths=LENGTHS)
    chosen = [(*chosen[0], *prompt) if index % 3 == 0 else prompt for index, prompt in enumerate(chosen)]
    conclude(judge, [greedy(prompt, max_new_tokens=4 + 5 * (index % 5)) for index, prompt in enumerate(chosen)])


@check(chapter=7, property="permutation", evidence=Evidence.GREEDY)
def test_permutation(judge: Judge) -> None:
    """The order of requests does not matter."""
    chosen = prompts(judge, 6, vocab_size=SPEC.vocab_size, lengths=LENGTHS)
    conclude(judge, [greedy(prompt, max_new_tokens=16) for prompt in reversed(chosen)])


@check(chapter=7, property="finished rows", evidence=Evidence.GREEDY)
def test_finished_rows(judge: Judge) -> None:
    """Rows that end at different rounds: a finished one neither grows nor disturbs the others."""
    chosen = prompts(judge, 6, vocab_size=SPEC.vocab_size, lengths=LENGTHS)
    conclude(judge, [greedy(prompt, max_new_tokens=1 + 5 * index) for index, prompt in enumerate(chosen)])


@check(chapter=7, property="mixed draft lengths", evidence=Evidence.GREEDY)
def test_mixed_draft_lengths(judge: Judge) -> None:
    """Requests with different numbers of draft tokens in one batch."""
    chosen = prompts(judge, 6, vocab_size=SPEC.vocab_size, lengths=LENGTHS)
    conclude(
        judge,
        [greedy(prompt, max_new_tokens=20, num_draft_tokens=1 + index % 4) for index, prompt in enumerate(chosen)],
    )


@check(chapter=7, property="mixed sampling", evidence=Evidence.GREEDY)
def test_mixed_sampling(judge: Judge) -> None:
    """Greedy rows beside sampled ones stay greedy."""
    table_subject(judge, SPEC).require("mixed_sampling")
    chosen = prompts(judge, 6, vocab_size=SPEC.vocab_size, lengths=LENGTHS)
    asked = [
        greedy(prompt, max_new_tokens=20) if index % 2 else request(prompt, max_new_tokens=20, temperature=1.3)
        for index, prompt in enumerate(chosen)
    ]
    conclude(judge, asked, judged=[1, 3, 5])


@check(chapter=7, property="mixed processors", evidence=Evidence.GREEDY)
def test_mixed_processors(judge: Judge) -> None:
    """Every row keeps its own penalties, bias and bans, also after other rows have left the batch."""
    capabilities = table_subject(judge, SMALL).capabilities
    claimed = [settings for name, settings in PROCESSORS.items() if getattr(capabilities, name)]
    if not claimed:
        raise NotApplicable(f"not claimed: any of {', '.join(PROCESSORS)}")
    chosen = prompts(judge, 7, vocab_size=SMALL.vocab_size, lengths=LENGTHS)
    asked = [
        greedy(prompt, max_new_tokens=10 + 3 * index, **settings)
        for index, (prompt, settings) in enumerate(zip(chosen, islice(cycle([{}, *claimed]), len(chosen)), strict=True))
    ]
    conclude(judge, asked, spec=SMALL)
