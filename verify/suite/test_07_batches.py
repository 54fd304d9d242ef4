"""Chapter 7: a request's answer does not depend on the other requests of its batch.

The product law of two sampled requests is judged exactly in chapter 2.
"""

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import pytest

from verify.checks.greedy_identity import judge_identity
from verify.checks.sampled_law import judge_sampled_law, seeded
from verify.coverage import Coverage
from verify.grammar import TokenAutomaton
from verify.judge import Judge, NotApplicable, check
from verify.models.pairs import Relation, TableSpec
from verify.protocol import Request
from verify.results import Evidence
from verify.suite.support import (
    claimed_of,
    greedy,
    noise_floor,
    prompts,
    request,
    scaled,
    table_subject,
    trained_prompts,
    trained_subject,
)

SPEC = TableSpec(vocab_size=48, relation=Relation.CLOSE, seed=701, num_rows=4096, sharpness=2.0)
SHORT = TableSpec(vocab_size=48, relation=Relation.CLOSE, seed=703, num_rows=4096, sharpness=2.0, max_positions=24)
LENGTHS = (1, 2, 4, 7, 11)
# A small vocabulary: the same tokens come again, so that penalties act.
SMALL = TableSpec(vocab_size=12, relation=Relation.CLOSE, seed=702, num_rows=4096)
# An even token, then an odd one.
TURNS = TokenAutomaton({turn: dict.fromkeys(range(turn, 12, 2), 1 - turn) for turn in (0, 1)})
PROCESSORS: tuple[dict[str, Any], ...] = (
    {"repetition_penalty": 1.6},
    {"presence_penalty": 1.1},
    {"frequency_penalty": 0.7},
    {"logit_bias": {0: 3.0, 5: -4.0, 7: 2.0}},
    {"forbidden_token_ids": (2, 3, 7)},
    {"allowed_token_ids": (0, 1, 4, 6, 9)},
    {"grammar": TURNS},
    {"stop_token_ids": (0, 1, 2)},
    {"stop_token_ids": (3, 4, 5, 6, 7), "min_new_tokens": 8},
)
SAMPLING: tuple[dict[str, Any], ...] = (
    {"temperature": 1.3},
    {"temperature": 0.6},
    {"top_k": 3},
    {"top_p": 0.7},
    {"min_p": 0.3},
    {"repetition_penalty": 1.6},
    {"presence_penalty": 1.4},
    {"frequency_penalty": 0.9},
    {"logit_bias": {0: 2.0, 5: -3.0, 7: 1.5}},
    {"forbidden_token_ids": (2, 3, 7)},
    {"stop_token_ids": (3, 4), "min_new_tokens": 4},
)
ROWS_PER_CALL = 6


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
    for one in asked:
        subject.require_for(one)
    coverage = Coverage()
    answers = subject.generate_together(asked)
    for each in answers:
        coverage.add_record(each.generation.record)
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


@check(chapter=7, property="ragged batch", evidence=Evidence.GREEDY)
def test_context_limit_in_a_batch(judge: Judge) -> None:
    """Rows that fill the context beside rows that are far from it: neither padding nor drafts may reach beyond its end."""
    chosen = prompts(judge, 6, vocab_size=SHORT.vocab_size, lengths=LENGTHS)
    asked = [
        greedy(prompt, max_new_tokens=(SHORT.max_positions - len(prompt)) // (1 + index % 2), num_draft_tokens=4)
        for index, prompt in enumerate(chosen)
    ]
    conclude(judge, asked, spec=SHORT)


@check(chapter=7, property="mixed draft lengths", evidence=Evidence.GREEDY)
def test_mixed_draft_lengths(judge: Judge) -> None:
    """Requests with different numbers of draft tokens in one batch, some with none where that is claimed."""
    fewest = 0 if table_subject(judge, SPEC).capabilities.zero_draft_tokens else 1
    chosen = prompts(judge, 6, vocab_size=SPEC.vocab_size, lengths=LENGTHS)
    asked = [
        greedy(prompt, max_new_tokens=20, num_draft_tokens=max(fewest, index % 5))
        for index, prompt in enumerate(reversed(chosen))
    ]
    conclude(judge, asked)


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


@check(chapter=7, property="mixed sampling", evidence=Evidence.BETTING)
def test_mixed_sampling_law(judge: Judge) -> None:
    """Sampled rows beside each other and beside greedy ones keep their own settings and number of draft tokens."""
    subject = table_subject(judge, SMALL)
    subject.require("batch", "sampled", "mixed_sampling")
    settings = cycle(claimed_of(subject, SAMPLING))
    chosen = prompts(judge, scaled(judge, 30) * ROWS_PER_CALL, vocab_size=SMALL.vocab_size, lengths=LENGTHS)
    asked = [
        greedy(prompt, max_new_tokens=20)
        if index % 3 == 1
        else request(prompt, **{"max_new_tokens": 20, "num_draft_tokens": 1 + index % 4} | next(settings))
        for index, prompt in enumerate(chosen)
    ]
    asked = [*seeded(subject, asked)]
    calls = [asked[start : start + ROWS_PER_CALL] for start in range(0, len(asked), ROWS_PER_CALL)]
    answers = ([each for each in subject.generate_together(call) if not each.request.sampling.greedy] for call in calls)
    judge.conclude(judge_sampled_law(subject, answers, alpha=judge.alpha, coverage=Coverage()))


@check(chapter=7, property="mixed processors", evidence=Evidence.GREEDY)
def test_mixed_processors(judge: Judge) -> None:
    """Every row keeps its own penalties, bias, bans, grammar, stops and minimum, also after other rows have left the batch."""
    claimed = claimed_of(table_subject(judge, SMALL), PROCESSORS, temperature=0.0)
    if not claimed:
        raise NotApplicable("not claimed: any processor, stop tokens, min_new_tokens")
    rows = [{}, *claimed]
    chosen = prompts(judge, max(7, len(rows)), vocab_size=SMALL.vocab_size, lengths=LENGTHS)
    asked = [
        greedy(prompt, max_new_tokens=10 + 3 * index, **settings)
        for index, (prompt, settings) in enumerate(zip(chosen, cycle(rows), strict=False))
    ]
    conclude(judge, asked, spec=SMALL)
