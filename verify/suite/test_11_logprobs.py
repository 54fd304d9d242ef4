"""Chapter 11: reported log-probabilities are the target's at the emitted position."""

from itertools import cycle
from typing import Any

import pytest

from verify.checks.logprobs import judge_logprobs
from verify.judge import Judge, check
from verify.models.pairs import Relation, TableSpec
from verify.results import Evidence
from verify.suite.support import (
    answered,
    noise_tolerance,
    prompts,
    request,
    scaled,
    table_subject,
    trained_prompts,
    trained_subject,
)

SPEC = TableSpec(vocab_size=32, relation=Relation.CLOSE, seed=1101, num_rows=4096)
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.6},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.1},
    "repetition_penalty": {"repetition_penalty": 1.4},
    "forbidden_tokens": {"forbidden_token_ids": tuple(range(0, 32, 3))},
    "stop_tokens": {"stop_token_ids": tuple(range(0, 32, 5))},
}
# Rows of one batch; one in three does not ask for log-probabilities.
ROWS: tuple[dict[str, Any], ...] = (
    {"logprobs": False},
    {},
    SETTINGS["stop_tokens"],
    {"logprobs": False, "temperature": 1.4},
    SETTINGS["temperature"],
    SETTINGS["greedy"],
)


@check(chapter=11, property="logprobs", evidence=Evidence.CONTRACT)
@pytest.mark.parametrize("name", SETTINGS)
def test_tables(judge: Judge, name: str) -> None:
    """After acceptance and after rejection, for every token of the block."""
    subject = table_subject(judge, SPEC)
    asked = [
        request(prompt, max_new_tokens=16, logprobs=True, **SETTINGS[name])
        for prompt in prompts(judge, scaled(judge, 12), vocab_size=SPEC.vocab_size)
    ]
    subject.require_for(asked[0])
    answers, _ = answered(subject, asked)
    judge.conclude(judge_logprobs(subject, answers))


@check(chapter=11, property="logprobs in a batch", evidence=Evidence.CONTRACT)
def test_batch(judge: Judge) -> None:
    """Every row that asks gets the log-probabilities of its own rows of logits, with unequal acceptance and settings."""
    subject = table_subject(judge, SPEC)
    mixed = subject.capabilities.mixed_sampling
    rows = [each for each in ROWS if mixed or "temperature" not in each]
    asked = [
        request(prompt, max_new_tokens=8 + index, **{"logprobs": True, **settings})
        for index, (prompt, settings) in enumerate(
            zip(prompts(judge, 9, vocab_size=SPEC.vocab_size), cycle(rows), strict=False)
        )
    ]
    subject.require("batch", "sampled", "logprobs")
    asked = [each for each in asked if not subject.capabilities.unclaimed(each)]
    answers = [each for each in subject.generate_together(asked) if each.request.logprobs]
    judge.conclude(judge_logprobs(subject, answers))


@check(chapter=11, property="logprobs", evidence=Evidence.CONTRACT)
def test_trained_pair(judge: Judge) -> None:
    """On the real pair, within the measured noise."""
    subject = trained_subject(judge)
    asked = [request(prompt, max_new_tokens=24, logprobs=True) for prompt in trained_prompts(judge, scaled(judge, 6))]
    subject.require_for(asked[0])
    answers, _ = answered(subject, asked)
    judge.conclude(judge_logprobs(subject, answers, tolerance=noise_tolerance(judge)))
