"""Drafters by themselves: what they propose, over which vocabulary, and that they propose nothing where they must."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from dspark import ModelDrafter, NgramDrafter, Request, SamplingParams, SpeculativeDecoder
from dspark.drafters.model import to_vocabulary
from dspark.drafters.ngram import NgramIndex
from dspark.drafters.protocol import Drafter, Proposal
from dspark.sampling import Processors
from tests.dspark.conftest import VOCAB_SIZE

Tiny = Callable[..., PreTrainedModel]


def propose(drafter: Drafter, texts: Sequence[Sequence[int]], num: Sequence[int], **sampling: Any) -> Proposal:
    requests = [
        Request(prompt_token_ids=tuple(text), max_new_tokens=20, sampling=SamplingParams(**sampling)) for text in texts
    ]
    processors = Processors(requests, vocab_size=VOCAB_SIZE, device=torch.device("cpu"), dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        return drafter.open(len(texts)).propose(
            token_ids=texts,
            num_draft_tokens=num,
            processors=processors,
            history=processors.history(texts),
            uniforms=torch.rand(len(texts), max(num), generator=generator, dtype=torch.float64),
        )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ([1, 2, 3, 9, 1, 2], [3, 9, 1]),
        ([1, 2, 3, 1, 2, 4, 1, 2], [4, 1, 2]),  # the most recent occurrence
        ([5, 1, 2, 3, 7, 2, 8, 1, 2], [3, 7, 2]),  # the longer match, though older
        ([6, 6], [6]),
        ([1, 2, 3], []),
        ([4], []),
    ],
)
def test_prompt_lookup(text: list[int], expected: list[int]) -> None:
    proposal = propose(NgramDrafter(), [text], [3])
    assert proposal.draft_token_ids[0].tolist() == expected
    assert proposal.draft_lengths == (len(expected),)
    assert torch.equal(proposal.draft_probs[0].argmax(-1), proposal.draft_token_ids[0])
    assert (proposal.draft_probs.sum(-1) == 1).all()


def searched(text: Sequence[int], num_tokens: int, *, shortest: int, longest: int) -> list[int]:
    """Every place of the text compared with its end, the last first."""
    best_end, best_length = 0, shortest - 1
    for end in range(len(text) - 1, 0, -1):
        length = 0
        while length < min(end, longest) and text[end - 1 - length] == text[-1 - length]:
            length += 1
        if length > best_length:
            best_end, best_length = end, length
    return list(text[best_end : best_end + num_tokens]) if best_end else []


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=6),
    st.integers(1, 3),
    st.integers(0, 2),
)
def test_the_index_finds_what_a_search_finds(parts: list[list[int]], shortest: int, more: int) -> None:
    index = NgramIndex(shortest, shortest + more)
    text: list[int] = []
    for part in parts:
        text += part
        assert index.continuation(text, 3) == searched(text, 3, shortest=shortest, longest=shortest + more)


def test_a_round_of_prompt_lookup_does_not_read_the_text_again() -> None:
    class Text(list[int]):
        num_read = 0

        def __getitem__(self, place: Any) -> Any:
            found = super().__getitem__(place)
            self.num_read += len(found) if isinstance(place, slice) else 1
            return found

    text, index = Text(range(1000)), NgramIndex(1, 4)
    index.continuation(text, 3)
    text.num_read = 0
    text += [1, 2, 3]
    assert index.continuation(text, 3) == [4, 5, 6]
    assert text.num_read < 60


def test_prompt_lookup_in_a_batch_where_some_rows_find_nothing() -> None:
    proposal = propose(NgramDrafter(), [[1, 2], [3, 4, 3], [5, 5, 5]], [3, 3, 1])
    assert proposal.draft_lengths == (0, 2, 1)
    assert proposal.draft_token_ids.shape == (3, 2)


def test_prompt_lookup_limits() -> None:
    assert propose(NgramDrafter(shortest=2), [[1, 7, 1]], [3]).draft_lengths == (0,)
    with pytest.raises(ValueError, match="shortest is 3"):
        NgramDrafter(shortest=3, longest=2)


@pytest.mark.parametrize("greedy", [False, True])
def test_model_drafts_are_drawn_from_the_declared_law(tiny: Tiny, greedy: bool) -> None:
    draft = tiny("llama", seed=1)
    texts, num = [[1, 2, 3], [4], [5, 6]], [3, 1, 2]
    settings = {"temperature": 0.8, "top_k": 9, "presence_penalty": 0.5, "repetition_penalty": 1.2}
    proposal = propose(ModelDrafter(draft, greedy=greedy), texts, num, **settings)
    assert proposal.draft_lengths == (3, 1, 2)
    for row, text in enumerate(texts):
        asked = Request(prompt_token_ids=tuple(text), max_new_tokens=20, sampling=SamplingParams(**settings))
        processors = Processors([asked], vocab_size=VOCAB_SIZE, device=torch.device("cpu"), dtype=torch.float64)
        drafts = proposal.draft_token_ids[row : row + 1]
        whole = torch.tensor([[*text, *drafts[0, : num[row] - 1].tolist()]])
        with torch.inference_mode():
            logits = draft(input_ids=whole, use_cache=False).logits[:, -num[row] :]
            law = processors.probs(logits, processors.history([text]), drafts)[0]
        if greedy:
            law = torch.nn.functional.one_hot(law.argmax(-1), VOCAB_SIZE).double()
        assert torch.allclose(proposal.draft_probs[row, : num[row]], law, atol=1e-12)
        drawn = proposal.draft_probs[row, range(num[row]), drafts[0, : num[row]]]
        assert (drawn > 0).all()


@pytest.mark.parametrize("draft_size", [11, 30])
def test_vocabularies_of_different_size(tiny: Tiny, draft_size: int) -> None:
    target = tiny("llama")
    drafter = ModelDrafter(tiny("llama", seed=1, vocab_size=draft_size))
    texts = [[1, 22, 3], [21]]  # tokens that the small draft does not have
    proposal = propose(drafter, texts, [4, 4])
    assert proposal.draft_probs.shape == (2, 4, VOCAB_SIZE)
    assert torch.allclose(proposal.draft_probs.sum(-1), torch.ones(2, 4, dtype=torch.float64))
    assert (proposal.draft_probs[..., draft_size:] == 0).all()
    decoder = SpeculativeDecoder(target, drafter)
    plain = SpeculativeDecoder(target)
    for text in texts:
        asked = Request(prompt_token_ids=tuple(text), max_new_tokens=15, sampling=SamplingParams(temperature=0.0))
        assert decoder.generate([asked])[0].token_ids == plain.generate([asked])[0].token_ids


def test_only_tokens_that_the_draft_lacks_are_allowed(tiny: Tiny) -> None:
    decoder = SpeculativeDecoder(tiny("llama"), ModelDrafter(tiny("llama", vocab_size=11)))
    sampling = SamplingParams(allowed_token_ids=(15, 20))
    [generation] = decoder.generate([Request(prompt_token_ids=(1,), max_new_tokens=10, sampling=sampling)])
    assert set(generation.token_ids) <= {15, 20}
    assert generation.record.num_accepted_draft_tokens == 0


def test_extra_tokens_are_cut_before_normalising() -> None:
    logits = torch.tensor([[0.0, 1.0, 50.0]])
    assert torch.equal(to_vocabulary(logits, 2), logits[:, :2])
    assert to_vocabulary(logits, 5).softmax(-1)[0, 3:].tolist() == [0, 0]
