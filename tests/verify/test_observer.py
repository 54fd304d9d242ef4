"""Rounds seen from the target agree with what a decoder that keeps a record says."""

from pathlib import Path

import pytest
import torch

from dspark.conformance import make_decoder as make_dspark
from verify.adapters.transformers import make_decoder as make_transformers
from verify.checks.acceptance import judge_speculation
from verify.coverage import HOW_TO_BE_SEEN
from verify.models.observer import ForwardCall, Round, Trace, observed
from verify.models.pairs import Relation, TableSpec, table_pair
from verify.protocol import Generation, ModelPair, Request, SamplingParams
from verify.results import Verdict
from verify.subject import Observed

SPEC = TableSpec(vocab_size=16, relation=Relation.CLOSE, seed=5, num_rows=512)


@pytest.fixture
def pair(tmp_path: Path) -> ModelPair:
    return table_pair(SPEC, device=torch.device("cpu"), dtype=torch.float64, folder=tmp_path)


def asked(seed: int) -> Request:
    return Request(prompt_token_ids=(1, 2, 3), max_new_tokens=20, seed=seed, sampling=SamplingParams(temperature=1.0))


def test_rounds_are_those_of_the_record(pair: ModelPair) -> None:
    decoder = make_dspark(pair)
    for seed in range(20):
        with observed(pair.target) as trace:
            (generation,) = decoder.generate([asked(seed)])
        rounds = trace.rounds(3, 20)
        assert rounds is not None
        assert [each.num_draft_tokens for each in rounds] == list(generation.record.drafted_per_step)
        # A limit may cut the last round's final token, which then looks like one accepted draft less.
        assert [each.num_accepted for each in rounds[:-1]] == list(generation.record.accepted_per_step)[:-1]


def test_rounds_of_transformers_are_seen(pair: ModelPair) -> None:
    decoder = make_transformers(pair)
    with observed(pair.target) as trace:
        (generation,) = decoder.generate([asked(0)])
    rounds = trace.rounds(3, len(generation.token_ids))
    assert rounds is not None
    assert sum(each.num_emitted for each in rounds) == 20
    assert max(each.num_draft_tokens for each in rounds) == 3


def test_a_batch_or_a_decoder_without_cache_is_not_guessed_at() -> None:
    assert Trace([ForwardCall(2, 0, 3)]).rounds(3, 4) is None
    uncached = Trace([ForwardCall(1, 0, 3), ForwardCall(1, 0, 4), ForwardCall(1, 0, 5)])
    assert uncached.rounds(3, 3) is None


def test_who_cannot_be_seen_is_told_how_to_be() -> None:
    generation = Generation(token_ids=[1], finish_reason="length")
    finding = judge_speculation([Observed(asked(0), generation, None)])
    assert finding.verdict is Verdict.INCONCLUSIVE
    assert finding.reason.endswith(HOW_TO_BE_SEEN)


def test_positions_become_rounds() -> None:
    trace = Trace([ForwardCall(1, 0, 5), ForwardCall(1, 4, 3), ForwardCall(1, 5, 2)])
    # Prompt of 3 and 2 drafts, 1 accepted: 5 committed. 2 drafts, none accepted: 6. 1 draft, accepted: 8.
    assert trace.rounds(3, 5) == [Round(0, 2, 1), Round(2, 2, 0), Round(3, 1, 1)]


def test_texts_become_rounds_where_there_is_no_cache() -> None:
    def read(*tokens: int) -> ForwardCall:
        return ForwardCall(1, 0, len(tokens), text=torch.tensor(tokens))

    # Prompt 1 2 3; drafts 4 9, the second rejected for 5; draft 6 accepted, bonus 7; at the limit, a forward without drafts.
    trace = Trace([read(1, 2, 3, 4, 9), read(1, 2, 3, 4, 5, 6), read(1, 2, 3, 4, 5, 6, 7)])
    assert trace.rounds(3, 5, text=(1, 2, 3, 4, 5, 6, 7, 8)) == [Round(0, 2, 1), Round(2, 1, 1), Round(4, 0, 0)]
    assert trace.rounds(3, 5, text=(1, 2, 3, 4, 4, 6, 7, 8)) is None  # not the text that it read
