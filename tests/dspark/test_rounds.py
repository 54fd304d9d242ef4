"""Recorded rounds: each confidence stands beside the outcome of its own round."""

from collections.abc import Callable

import numpy as np
import pytest
from transformers import PreTrainedModel

from dspark import ModelDrafter, NgramDrafter, Request, SpeculativeDecoder
from dspark.rounds import RecordedRounds, record_rounds
from tests.dspark.conftest import VOCAB_SIZE

Tiny = Callable[..., PreTrainedModel]


def requests(num: int) -> list[Request]:
    return [
        Request(
            prompt_token_ids=(index % VOCAB_SIZE, 3), max_new_tokens=4 + 5 * (index % 3), num_draft_tokens=3, seed=index
        )
        for index in range(num)
    ]


def test_a_batch_records_what_its_requests_record_alone(tiny: Tiny) -> None:
    target, drafter = tiny("llama"), ModelDrafter(tiny("llama", initializer_range=0.4))
    asked = requests(7)
    together = record_rounds(target, drafter, asked, batch_size=4)
    for index, each in enumerate(asked):
        own = together.where(together.request_ids == index)
        alone = record_rounds(target, drafter, [each])
        assert own.lengths.tolist() == alone.lengths.tolist()
        assert own.accepted.tolist() == alone.accepted.tolist()
        width = alone.num_positions
        np.testing.assert_allclose(own.confidences[:, :width], alone.confidences, atol=1e-9)
        [generation] = SpeculativeDecoder(target, drafter).generate([each])
        drafted = [length for length in generation.record.drafted_per_step if length]
        assert own.lengths.tolist() == drafted
        assert own.accepted.sum() == generation.record.num_accepted_draft_tokens
    assert 0 < together.accepted.sum() < together.lengths.sum()


def test_what_cannot_be_recorded(tiny: Tiny) -> None:
    target, drafter = tiny("llama"), ModelDrafter(tiny("llama"))
    with pytest.raises(ValueError, match="a request has stop tokens"):
        record_rounds(target, drafter, [Request(prompt_token_ids=(1,), max_new_tokens=3, stop_token_ids=(2,))])
    with pytest.raises(ValueError, match="no round drafted anything"):
        record_rounds(target, drafter, [Request(prompt_token_ids=(1,), max_new_tokens=1)])
    with pytest.raises(ValueError, match="gives no confidences"):
        record_rounds(target, NgramDrafter(), [Request(prompt_token_ids=(1, 1, 1, 1), max_new_tokens=9)])


@pytest.mark.parametrize(
    ("confidences", "accepted", "lengths", "message"),
    [
        ([[0.5, 0.5]], [1, 1], [2, 2], "one entry a round"),
        ([[0.5, 0.5]], [3], [2], "accepted more drafts than it had"),
        ([[0.5, 0.5]], [-1], [2], "or less than none"),
        ([[0.5, 0.5]], [0], [3], "between 0 and 1"),
        ([[0.5, np.nan]], [0], [2], "between 0 and 1"),
        ([[0.5, 1.5]], [0], [2], "between 0 and 1"),
    ],
)
def test_rounds_that_are_none(
    confidences: list[list[float]], accepted: list[int], lengths: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        RecordedRounds(
            confidences=np.array(confidences),
            accepted=np.array(accepted),
            lengths=np.array(lengths),
            request_ids=np.zeros(len(accepted), dtype=np.int64),
        )
