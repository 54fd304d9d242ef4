"""Chapter 3: sampled output follows the target's law, by betting; any vocabulary, any number of rounds."""

from collections.abc import Iterator, Sequence
from itertools import cycle, pairwise
from typing import Any

import pytest

from verify.betting.evidence import TokenEvidence
from verify.checks.sampled_law import in_turn, judge_sampled_law, seeded
from verify.coverage import Coverage, rejections_and_full_acceptance
from verify.judge import Judge, check
from verify.models.pairs import Relation, TableSpec
from verify.results import Evidence
from verify.scoring import rows
from verify.subject import Observed
from verify.suite.support import (
    claimed_of,
    noise_tolerance,
    prompts,
    request,
    scaled,
    table_subject,
    trained_prompts,
    trained_subject,
)

SPECS = (
    TableSpec(vocab_size=16, relation=Relation.CLOSE, seed=301, num_rows=4096, sharpness=1.5),
    TableSpec(vocab_size=64, relation=Relation.UNRELATED, seed=302, num_rows=4096),
    TableSpec(vocab_size=64, relation=Relation.PEAKED, seed=303, num_rows=4096),
    TableSpec(vocab_size=512, relation=Relation.CLOSE, seed=304, num_rows=512, sharpness=2.0, zeros=0.3),
    TableSpec(vocab_size=4099, relation=Relation.CLOSE, seed=305, num_rows=64, sharpness=2.5),
)
FEW_TOKENS = TableSpec(vocab_size=3, relation=Relation.CLOSE, seed=311, num_rows=4096)
BASE = TableSpec(vocab_size=24, relation=Relation.CLOSE, seed=306, num_rows=4096, sharpness=1.5)
LONG = TableSpec(vocab_size=192, relation=Relation.CLOSE, seed=307, num_rows=4096, sharpness=1.5, max_positions=512)
LONG_LENGTH = 320
LATE = 128  # the first tokens are judged by the other checks
PENALTIES: tuple[dict[str, Any], ...] = (
    {},
    {"repetition_penalty": 2.0},
    {"frequency_penalty": 3.0},
)
PROCESSORS: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.6},
    "top_k": {"top_k": 6, "temperature": 1.4},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.15},
    "repetition_penalty": {"repetition_penalty": 1.5},
    "presence_penalty": {"presence_penalty": 1.5},
    "frequency_penalty": {"frequency_penalty": 1.0},
}


@check(chapter=3, property="sampled law", evidence=Evidence.BETTING)
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_tables(judge: Judge, spec: TableSpec) -> None:
    """Several rounds on tables of every size; every position is judged given what was emitted before it."""
    judge_table(judge, spec)


@check(chapter=3, property="sampled law", evidence=Evidence.BETTING, minimum_profile="default")
def test_few_tokens(judge: Judge) -> None:
    """Three tokens, of which drafts from the text itself are often accepted."""
    judge_table(judge, FEW_TOKENS)


def judge_table(judge: Judge, spec: TableSpec) -> None:
    """Bet on the outputs of a fresh decoder."""
    subject = table_subject(judge, spec)
    subject.require("sampled")
    asked = [
        request(prompt, max_new_tokens=32) for prompt in prompts(judge, scaled(judge, 64), vocab_size=spec.vocab_size)
    ]
    required = rejections_and_full_acceptance(3) if subject.capabilities.draft_model else ()
    judge.conclude(
        judge_sampled_law(
            subject, in_turn(subject, asked), alpha=judge.alpha, coverage=Coverage(), required_paths=required
        )
    )


@check(chapter=3, property="sampled law of processors", evidence=Evidence.BETTING, minimum_profile="default")
@pytest.mark.parametrize("name", PROCESSORS)
def test_processors(judge: Judge, name: str) -> None:
    """Temperature, truncation and penalties on a vocabulary too large for the exact law."""
    subject = table_subject(judge, BASE)
    subject.require("sampled")
    asked = [
        request(prompt, max_new_tokens=32, **PROCESSORS[name])
        for prompt in prompts(judge, scaled(judge, 48), vocab_size=BASE.vocab_size)
    ]
    subject.require_for(asked[0])
    judge.conclude(judge_sampled_law(subject, in_turn(subject, asked), alpha=judge.alpha, coverage=Coverage()))


@check(chapter=3, property="sampled law of long texts", evidence=Evidence.BETTING, minimum_profile="default")
def test_long_texts(judge: Judge) -> None:
    """The tokens behind the first 128: histories, caches and streams that end, wrap or are tidied up there; also in a batch."""
    subject = table_subject(judge, LONG)
    subject.require("sampled")
    claimed = claimed_of(subject, PENALTIES)
    first, *others = prompts(judge, 1 + len(PENALTIES), vocab_size=LONG.vocab_size, lengths=(8,))
    alone = [
        request(prompt, max_new_tokens=LONG_LENGTH, **each)
        for prompt, each in zip(others, cycle(claimed), strict=False)
    ]
    ragged = [request(first * (1 + 4 * row), max_new_tokens=LONG_LENGTH // 2**row, **claimed[-1]) for row in range(3)]

    def answers() -> Iterator[Sequence[Observed]]:
        if subject.capabilities.batch:
            yield subject.generate_together(seeded(subject, ragged))
        yield from ([subject.generate_one(each)] for each in seeded(subject, alone))

    def late(_: Observed, evidence: TokenEvidence) -> TokenEvidence | None:
        return rows(evidence, range(LATE, evidence.num_tokens))

    judge.conclude(judge_sampled_law(subject, answers(), alpha=judge.alpha, coverage=Coverage(), select=late))


@check(chapter=3, property="first token", evidence=Evidence.BETTING, minimum_profile="default")
def test_first_token(judge: Judge) -> None:
    """The token after the prompt, alone: in many decoders it takes another path than the rest."""
    subject = table_subject(judge, BASE)
    subject.require("sampled")
    asked = [
        request(prompt, max_new_tokens=1) for prompt in prompts(judge, scaled(judge, 400), vocab_size=BASE.vocab_size)
    ]
    judge.conclude(judge_sampled_law(subject, in_turn(subject, asked), alpha=judge.alpha, coverage=Coverage()))


@check(chapter=3, property="law after an event", evidence=Evidence.BETTING, minimum_profile="default")
@pytest.mark.parametrize("event", ["full acceptance", "rejection at 0", "rejection at 1", "rejection at 2"])
def test_after(judge: Judge, event: str) -> None:
    """Only the tokens of rounds that follow full acceptance, or a rejection at a given offset.

    Conditioning on the outcome of a round keeps the law only under the standard rule, so that rule must be claimed.
    """
    subject = table_subject(judge, BASE)
    subject.require("sampled", "standard_acceptance", "draft_model")
    key = "answers of chapter 3"
    if (
        key not in judge.shared
    ):  # one set of answers serves all events; the budget is split over the checks all the same
        chosen = prompts(judge, scaled(judge, 240), vocab_size=BASE.vocab_size)
        asked = [request(prompt, max_new_tokens=32) for prompt in chosen]
        judge.shared[key] = list(in_turn(subject, asked))

    def following(each: Observed, evidence: TokenEvidence) -> TokenEvidence | None:
        return rows(evidence, positions_after(each, event))

    judge.conclude(
        judge_sampled_law(subject, judge.shared[key], alpha=judge.alpha, coverage=Coverage(), select=following)
    )


@check(chapter=3, property="sampled law of the trained pair", evidence=Evidence.BETTING)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_trained_pair(judge: Judge, temperature: float) -> None:
    """A real target with its real draft; every factor is discounted by the measured numerical noise."""
    subject = trained_subject(judge)
    subject.require("sampled")
    asked = [
        request(prompt, max_new_tokens=32, num_draft_tokens=5, temperature=temperature)
        for prompt in trained_prompts(judge, scaled(judge, 48))
    ]
    required = ("rejected at 0", "fully accepted") if subject.capabilities.draft_model else ()
    judge.conclude(
        judge_sampled_law(
            subject,
            in_turn(subject, asked),
            alpha=judge.alpha,
            tolerance=noise_tolerance(judge, temperature=temperature),
            coverage=Coverage(),
            required_paths=required,
        )
    )


def positions_after(each: Observed, event: str) -> list[int]:
    """Output positions of the rounds that directly follow the event."""
    found: list[int] = []
    rounds = each.rounds or []
    for earlier, later in pairwise(rounds):
        full = earlier.num_accepted == earlier.num_draft_tokens
        happened = full if event == "full acceptance" else not full and event == f"rejection at {earlier.num_accepted}"
        if happened and earlier.num_draft_tokens:
            found.extend(
                range(later.output_offset, min(later.output_offset + later.num_emitted, len(each.generation.token_ids)))
            )
    return found
