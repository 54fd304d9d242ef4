"""Chapter 9: a token that the target cannot emit is never emitted, whatever the draft says."""

import pytest

from verify.checks.sampled_law import in_turn, judge_sampled_law
from verify.checks.support import judge_corrupt_draft, judge_vocabularies
from verify.coverage import Coverage
from verify.judge import Judge, check
from verify.models.pairs import Relation, TableSpec
from verify.results import Evidence
from verify.suite.support import prompts, request, scaled, table_subject

SPEC = TableSpec(vocab_size=16, relation=Relation.CLOSE, seed=901, num_rows=4096, zeros=0.5)
DISJOINT = TableSpec(vocab_size=16, relation=Relation.DISJOINT, seed=902, num_rows=4096, zeros=0.5)
PLAIN = TableSpec(vocab_size=3, relation=Relation.CLOSE, seed=903)


@check(chapter=9, property="support", evidence=Evidence.BETTING)
@pytest.mark.parametrize("spec", [SPEC, DISJOINT], ids=lambda spec: spec.relation)
def test_zeros(judge: Judge, spec: TableSpec) -> None:
    """Half of every target row is 0 and the draft proposes those tokens: one of them emitted is a failure at once."""
    subject = table_subject(judge, spec)
    subject.require("sampled")
    asked = [
        request(prompt, max_new_tokens=32) for prompt in prompts(judge, scaled(judge, 48), vocab_size=spec.vocab_size)
    ]
    judge.conclude(judge_sampled_law(subject, in_turn(subject, asked), alpha=judge.alpha, coverage=Coverage()))


@check(chapter=9, property="corrupt draft", evidence=Evidence.EXACT)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_corrupt_draft(judge: Judge, value: str) -> None:
    """Draft logits of NaN or infinity cannot force a token: the decoder raises, or its law is still the target's."""
    subject = table_subject(judge, PLAIN)
    subject.require("sampled", "draft_model")
    judge.conclude(judge_corrupt_draft(judge, PLAIN, float(value)))


@check(chapter=9, property="vocabularies of different size", evidence=Evidence.EXACT)
@pytest.mark.parametrize("extra", [-1, 2])
def test_vocabularies(judge: Judge, extra: int) -> None:
    """A draft whose vocabulary is smaller or larger than the target's, as padded checkpoints have."""
    subject = table_subject(judge, PLAIN)
    subject.require("sampled", "draft_vocab_mismatch")
    judge.conclude(judge_vocabularies(judge, PLAIN, extra))
