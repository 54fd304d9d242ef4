"""The loop: greedy identity, lengths, stops, roles, seeds, batches, streaming, limits."""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import dspark.row
from dspark import Generation, ModelDrafter, NgramDrafter, Request, SamplingParams, SpeculativeDecoder
from dspark.drafters.protocol import Proposal
from dspark.lean.context import LeanContext
from dspark.sampling import History, Processors
from tests.dspark.conftest import MAX_POSITIONS, VOCAB_SIZE

Tiny = Callable[..., PreTrainedModel]
# Random models repeat themselves; the penalty makes every position a decision of its own.
GREEDY = SamplingParams(temperature=0.0, repetition_penalty=1.3)
PROMPTS: list[tuple[int, ...]] = [(1,), (4, 5, 6, 4, 5), (2, 2, 3, 8, 9, 10, 11, 12)]
REPLACEMENT = 7


class ScriptedDrafter:
    """Drafts the tokens of a script by output position, one-hot: what is accepted is known in advance."""

    feature_layers: tuple[int, ...] = ()

    def __init__(self, script: Sequence[int], num_prompt_tokens: int) -> None:
        self.script = script
        self.num_prompt_tokens = num_prompt_tokens
        self.observed: list[list[int]] = []

    def open(self, num_rows: int) -> "ScriptedDrafter":
        return self

    def propose(
        self,
        *,
        token_ids: Sequence[Sequence[int]],
        num_draft_tokens: Sequence[int],
        processors: Processors,
        history: History,
        uniforms: Tensor,
    ) -> Proposal:
        start = len(token_ids[0]) - self.num_prompt_tokens
        drafts = torch.tensor([list(self.script[start : start + num_draft_tokens[0]])])
        probs = torch.nn.functional.one_hot(drafts, processors.vocab_size).to(processors.dtype)
        return Proposal(drafts, probs, (drafts.shape[1],))

    def observe(self, *, token_ids: Tensor, counts: Sequence[int], features: Tensor | None) -> None:
        self.observed.append(token_ids[0, : counts[0]].tolist())

    def select(self, rows: Sequence[int]) -> None: ...


def request(prompt: tuple[int, ...] = PROMPTS[1], **changes: Any) -> Request:
    return Request(**{"prompt_token_ids": prompt, "max_new_tokens": 12, "seed": 5, **changes})


def plain(target: PreTrainedModel, prompt: tuple[int, ...], num_tokens: int) -> list[int]:
    tokens = torch.tensor([prompt])
    result = target.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=num_tokens,
        do_sample=False,
        repetition_penalty=GREEDY.repetition_penalty,
        pad_token_id=0,
    )
    return result[0, len(prompt) :].tolist()


def check_record(generation: Generation) -> None:
    """The identities that hold for any generation."""
    record, roles = generation.record, generation.roles
    assert len(roles) == len(generation.token_ids)
    assert sum(record.acceptance_histogram) == record.num_spec_steps == len(record.drafted_per_step)
    assert sum(k * n for k, n in enumerate(record.acceptance_histogram)) == record.num_accepted_draft_tokens
    assert sum(record.accepted_per_step) == record.num_accepted_draft_tokens == roles.count("accepted")
    assert sum(record.drafted_per_step) == record.num_draft_tokens
    assert all(a <= d for a, d in zip(record.accepted_per_step, record.drafted_per_step, strict=True))
    finals = roles.count("recovered") + roles.count("bonus")
    assert record.num_spec_steps - finals == (generation.finish_reason == "stop" and roles[-1] == "accepted")


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "mistral"])
@pytest.mark.parametrize(
    ("dtype", "greedy_drafts"), [(torch.float64, False), (torch.float64, True), (torch.float32, False)]
)
def test_greedy_is_the_targets_own(tiny: Tiny, kind: str, dtype: torch.dtype, greedy_drafts: bool) -> None:
    target = tiny(kind, dtype=dtype)
    draft = tiny(kind, dtype=dtype)
    with torch.no_grad():  # near the target: drafts are accepted and rejected
        for parameter in draft.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    decoder = SpeculativeDecoder(target, ModelDrafter(draft, greedy=greedy_drafts))
    requests = [request(prompt, max_new_tokens=20 + len(prompt), sampling=GREEDY) for prompt in PROMPTS]
    expected = [plain(target, each.prompt_token_ids, each.max_new_tokens) for each in requests]
    solo = [decoder.generate([each])[0] for each in requests]
    together = decoder.generate(requests)
    assert [list(each.token_ids) for each in solo] == expected
    assert [list(each.token_ids) for each in together] == expected
    assert sum(each.record.num_accepted_draft_tokens for each in solo) > 10
    assert sum(each.roles.count("recovered") for each in solo) > 3
    for each in [*solo, *together]:
        check_record(each)


@pytest.mark.filterwarnings("ignore:.*recomputed")
def test_greedy_without_a_croppable_cache(tiny: Tiny) -> None:
    target = tiny("mamba")
    decoder = SpeculativeDecoder(target, ModelDrafter(tiny("llama", seed=1)))
    for prompt in PROMPTS:
        [generation] = decoder.generate([request(prompt, sampling=GREEDY)])
        assert list(generation.token_ids) == plain(target, prompt, 12)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])  # learned positions raise beyond the limit, rotary ones do not
def test_a_draft_with_a_shorter_context(tiny: Tiny, kind: str) -> None:
    target = tiny("llama")
    shorter = {"n_positions": 12} if kind == "gpt2" else {"max_position_embeddings": 12}
    decoder = SpeculativeDecoder(target, ModelDrafter(tiny(kind, **shorter)))
    prompts = [
        *PROMPTS,
        PROMPTS[2] + (13, 14, 15, 16),
        PROMPTS[2] * 2,
    ]  # the last two fill the draft's context, and pass it
    requests = [request(prompt, max_new_tokens=20, sampling=GREEDY) for prompt in prompts]
    expected = [plain(target, prompt, 20) for prompt in prompts]
    solo = [decoder.generate([each])[0] for each in requests]
    assert [list(each.token_ids) for each in solo] == expected
    assert [list(each.token_ids) for each in decoder.generate(requests)] == expected
    assert [each.record.num_draft_tokens > 0 for each in solo] == [True, True, True, True, False]


def test_ngram_greedy(tiny: Tiny) -> None:
    target = tiny("qwen3")
    requests = [request(prompt, max_new_tokens=40, sampling=GREEDY, num_draft_tokens=4) for prompt in PROMPTS]
    generations = SpeculativeDecoder(target, NgramDrafter()).generate(requests)
    for each, generation in zip(requests, generations, strict=True):
        assert list(generation.token_ids) == plain(target, each.prompt_token_ids, 40)
        check_record(generation)
    assert sum(each.record.num_accepted_draft_tokens for each in generations) > 0


@pytest.mark.parametrize("num_draft_tokens", [1, 2, 3, 7])
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_a_draft_equal_to_the_target_is_always_accepted(tiny: Tiny, num_draft_tokens: int, temperature: float) -> None:
    decoder = SpeculativeDecoder(tiny("llama"), ModelDrafter(tiny("llama")))
    sampling = SamplingParams(temperature=temperature, top_k=15, repetition_penalty=1.2, presence_penalty=0.3)
    requests = [request(p, num_draft_tokens=num_draft_tokens, sampling=sampling, max_new_tokens=25) for p in PROMPTS]
    for generation in [*decoder.generate(requests), *decoder.generate(requests[:1])]:
        assert generation.record.draft_acceptance_rate == 1
        assert "recovered" not in generation.roles
        check_record(generation)


def test_stale_draft_cache_is_seen(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = LeanContext.commit
    monkeypatch.setattr(
        LeanContext, "commit", lambda self, lengths: commit(self, [max(1, length - 1) for length in lengths])
    )
    decoder = SpeculativeDecoder(tiny("llama"), ModelDrafter(tiny("llama")))
    generations = decoder.generate([request(sampling=GREEDY, max_new_tokens=25)])
    assert list(generations[0].token_ids) != plain(tiny("llama"), PROMPTS[1], 25)


MIXED = [
    request(PROMPTS[0], seed=1),
    request(PROMPTS[1], seed=2, sampling=GREEDY, num_draft_tokens=5),
    request(
        PROMPTS[2], seed=1, sampling=SamplingParams(temperature=0.7, top_k=9, frequency_penalty=0.4), max_new_tokens=5
    ),
    request(PROMPTS[1], seed=3, num_draft_tokens=0, sampling=SamplingParams(top_p=0.8, min_p=0.01), logprobs=True),
    request(PROMPTS[0], seed=4, num_draft_tokens=1, min_new_tokens=6, stop_token_ids=tuple(range(12))),
]


@pytest.mark.parametrize("drafter", ["model", "ngram"])
def test_a_seed_gives_one_output_alone_and_in_any_batch(tiny: Tiny, drafter: str) -> None:
    target = tiny("qwen3")
    decoder = SpeculativeDecoder(target, ModelDrafter(tiny("qwen3", seed=1)) if drafter == "model" else NgramDrafter())
    solo = [decoder.generate([each])[0] for each in MIXED]
    for order in ([0, 1, 2, 3, 4], [4, 2, 0], [3, 3, 1, 2]):
        together = decoder.generate([MIXED[index] for index in order])
        for index, generation in zip(order, together, strict=True):
            assert generation.token_ids == solo[index].token_ids
            assert (generation.roles, generation.record) == (solo[index].roles, solo[index].record)
            if MIXED[index].logprobs:
                assert generation.logprobs == pytest.approx(solo[index].logprobs, abs=1e-9)
    for each in solo:
        check_record(each)
    assert decoder.generate([]) == []


def test_a_shared_stream_is_seen(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = torch.Generator().manual_seed(0)
    monkeypatch.setattr(dspark.row, "uniform_source", lambda seed: shared)
    decoder = SpeculativeDecoder(tiny("qwen3"), ModelDrafter(tiny("qwen3", seed=1)))
    solo = [decoder.generate([each])[0].token_ids for each in MIXED]
    assert [each.token_ids for each in decoder.generate(MIXED)] != solo


def test_seeds_differ_and_none_is_fresh(tiny: Tiny) -> None:
    decoder = SpeculativeDecoder(tiny("qwen3"), ModelDrafter(tiny("qwen3", seed=1)))
    state = torch.random.get_rng_state()
    outputs = [decoder.generate([request(seed=seed, max_new_tokens=16)])[0].token_ids for seed in (0, 1, 1, None, None)]
    assert outputs[1] == outputs[2]
    assert len(set(outputs)) == 4
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("num_draft_tokens", [1, 3])
def test_exact_lengths(tiny: Tiny, num_draft_tokens: int) -> None:
    target = tiny("llama")
    for draft, limit in product((tiny("llama"), tiny("llama", seed=1)), range(1, 2 * num_draft_tokens + 2)):
        decoder = SpeculativeDecoder(target, ModelDrafter(draft))
        [generation] = decoder.generate([request(max_new_tokens=limit, num_draft_tokens=num_draft_tokens)])
        assert len(generation.token_ids) == limit
        assert generation.finish_reason == "length"
        emitted = 0
        record = generation.record
        for drafted, accepted in zip(record.drafted_per_step, record.accepted_per_step, strict=True):
            assert emitted + drafted + 1 <= limit  # no draft that could not be emitted
            emitted += accepted + 1


@pytest.mark.parametrize("right", range(5))
def test_a_stop_token_ends_the_output_at_every_offset(tiny: Tiny, right: int) -> None:
    """The first `right` drafts of a block of four are the target's own; the stop token stands at each offset in turn."""
    target = tiny("qwen3")
    greedy = plain(target, PROMPTS[2], 12)
    script = greedy[:right] + [(token + 1) % VOCAB_SIZE for token in greedy[right:]]
    for offset, stop in enumerate(greedy[: right + 1]):
        first = greedy.index(stop)
        decoder = SpeculativeDecoder(target, ScriptedDrafter(script, len(PROMPTS[2])))
        asked = request(PROMPTS[2], num_draft_tokens=4, sampling=GREEDY, stop_token_ids=(stop,), logprobs=True)
        [generation] = decoder.generate([asked])
        assert list(generation.token_ids) == greedy[: first + 1]
        assert generation.finish_reason == "stop"
        assert len(generation.logprobs or ()) == len(generation.token_ids)
        check_record(generation)
        if first == offset:
            assert generation.record.accepted_per_step == (min(right, offset + 1),)
            last = "accepted" if offset < right else "bonus" if right == 4 else "recovered"
            assert generation.roles == ("accepted",) * min(right, offset) + (last,)


def test_stop_wins_over_length(tiny: Tiny) -> None:
    target = tiny("qwen3")
    greedy = plain(target, PROMPTS[2], 4)
    asked = request(PROMPTS[2], max_new_tokens=4, sampling=GREEDY, stop_token_ids=(greedy[3],))
    [generation] = SpeculativeDecoder(target, ModelDrafter(target)).generate([asked])
    assert generation.finish_reason == "stop"


def test_zero_drafts_is_plain_decoding(tiny: Tiny) -> None:
    decoder = SpeculativeDecoder(tiny("llama"), ModelDrafter(tiny("llama", seed=1)))
    [generation] = decoder.generate([request(num_draft_tokens=0)])
    assert set(generation.roles) == {"bonus"}
    assert generation.record.acceptance_histogram == (12,)
    without = SpeculativeDecoder(tiny("llama")).generate([request()])[0]
    assert set(without.roles) == {"bonus"}


def test_logprobs_are_the_processed_law_of_the_target(tiny: Tiny) -> None:
    target = tiny("llama")
    sampling = SamplingParams(temperature=0.7, top_k=8, repetition_penalty=1.3)
    decoder = SpeculativeDecoder(target, ModelDrafter(tiny("llama", seed=1)))
    asked = request(sampling=sampling, logprobs=True, max_new_tokens=20)
    [generation] = decoder.generate([asked])
    processors = Processors([asked], vocab_size=VOCAB_SIZE, device=torch.device("cpu"), dtype=torch.float64)
    for position, token in enumerate(generation.token_ids):
        text = [*asked.prompt_token_ids, *generation.token_ids[:position]]
        with torch.inference_mode():
            logits = target(input_ids=torch.tensor([text]), use_cache=False).logits[:, -1:]
        law = processors.probs(logits, processors.history([text]), torch.zeros(1, 0, dtype=torch.long))
        assert (generation.logprobs or ())[position] == pytest.approx(float(law[0, 0, token].log()), abs=1e-9)


@pytest.mark.parametrize("index", range(len(MIXED)))
def test_streaming_is_the_same_output(tiny: Tiny, index: int) -> None:
    decoder = SpeculativeDecoder(tiny("qwen3"), ModelDrafter(tiny("qwen3", seed=1)))
    chunks = list(decoder.stream(MIXED[index]))
    generation = decoder.generate([MIXED[index]])[0]
    assert tuple(token for chunk in chunks for token in chunk) == generation.token_ids
    assert len(chunks) == generation.record.num_spec_steps
    assert not torch.is_inference_mode_enabled()


def test_a_cancelled_stream_leaves_the_next_request_untouched(tiny: Tiny) -> None:
    decoder = SpeculativeDecoder(tiny("qwen3"), ModelDrafter(tiny("qwen3", seed=1)))
    expected = decoder.generate(MIXED)
    for consumed in range(4):
        stream = decoder.stream(request(PROMPTS[2], num_draft_tokens=5))
        for _ in range(consumed):
            next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert [each.token_ids for each in decoder.generate(MIXED)] == [each.token_ids for each in expected]
    interleaved = [decoder.stream(each) for each in (MIXED[0], MIXED[0])]
    chunks: list[list[int]] = [[], []]
    for _ in range(len(expected[0].token_ids)):
        for output, stream in zip(chunks, interleaved, strict=True):
            output += next(stream, [])
    assert chunks == [list(expected[0].token_ids)] * 2


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_up_to_the_context_limit(tiny: Tiny, kind: str) -> None:
    """Learned positions have no entry beyond the limit: touching one is an error."""
    target, short = tiny(kind), tiny("gpt2", seed=2, n_positions=12)
    room = MAX_POSITIONS - len(PROMPTS[1])
    for draft in (tiny(kind), short):  # the second one runs out of positions long before the target
        decoder = SpeculativeDecoder(target, ModelDrafter(draft))
        asked = [
            request(max_new_tokens=room, num_draft_tokens=7, sampling=GREEDY),
            request(PROMPTS[0], max_new_tokens=20, num_draft_tokens=3, sampling=GREEDY),
        ]
        for generation, each in zip(decoder.generate(asked), asked, strict=True):
            assert list(generation.token_ids) == plain(target, each.prompt_token_ids, each.max_new_tokens)
        assert len(decoder.generate(asked[:1])[0].token_ids) == room
    with pytest.raises(ValueError, match=f"is {MAX_POSITIONS + 1} tokens; the target has {MAX_POSITIONS} positions"):
        decoder.generate([request(max_new_tokens=room + 1)])


def test_no_uniforms_for_drafts_that_could_not_be_emitted(tiny: Tiny) -> None:
    """`num_draft_tokens` may say "as many as possible": a round costs what max_new_tokens leaves of it."""
    batch = SpeculativeDecoder(tiny("llama"), NgramDrafter())._batch([request(max_new_tokens=4, num_draft_tokens=1000)])
    batch.advance()
    expected = torch.Generator().manual_seed(5)
    torch.rand(2 * 3 + 1, generator=expected, dtype=torch.float64)
    assert torch.equal(batch.rows[0].source.get_state(), expected.get_state())


def test_the_drafter_learns_what_the_target_has_read(tiny: Tiny) -> None:
    target = tiny("qwen3")
    greedy = plain(target, PROMPTS[2], 12)
    drafter = ScriptedDrafter([*greedy[:2], 0, *greedy[3:]], len(PROMPTS[2]))
    [generation] = SpeculativeDecoder(target, drafter).generate([request(PROMPTS[2], sampling=GREEDY)])
    read = [token for tokens in drafter.observed for token in tokens]
    text = [*PROMPTS[2], *generation.token_ids]
    assert read == text[: len(read)]
    assert drafter.observed[0] == list(PROMPTS[2][:-1])


def test_a_drafter_that_drafts_too_much_is_refused(tiny: Tiny) -> None:
    class Greedy(ScriptedDrafter):
        def propose(self, **inputs: Any) -> Proposal:
            return super().propose(**{**inputs, "num_draft_tokens": [5]})

    decoder = SpeculativeDecoder(tiny("qwen3"), Greedy([1] * 20, len(PROMPTS[1])))
    with pytest.raises(ValueError, match="drafter proposed"):
        decoder.generate([request(max_new_tokens=3)])


@pytest.mark.parametrize("sampling", [GREEDY, SamplingParams(), SamplingParams(top_k=3, top_p=0.5)])
def test_nan_logits_name_request_and_position(tiny: Tiny, sampling: SamplingParams) -> None:
    target = tiny("qwen3")

    def break_late(module: Any, inputs: Any, output: Any) -> Any:
        if (output.logits.shape[0], module.calls) == (2, 3):
            output.logits[1, 0] = torch.nan
        module.calls += 1
        return output

    target.calls = 0
    target.register_forward_hook(break_late)
    decoder = SpeculativeDecoder(target)
    with pytest.raises(ValueError, match="request 1: the target's logits at output position 2 are NaN"):
        decoder.generate([request(sampling=sampling), request(PROMPTS[0], sampling=sampling)])


def test_nan_drafts_are_harmless(tiny: Tiny) -> None:
    target, draft = tiny("qwen3"), tiny("qwen3")
    with torch.no_grad():
        draft.lm_head.weight.fill_(torch.nan)
    for sampling in (GREEDY, SamplingParams()):
        [generation] = SpeculativeDecoder(target, ModelDrafter(draft)).generate([request(sampling=sampling)])
        assert set(generation.roles) == {"recovered", "bonus"}  # the last round has no room for a draft
        assert generation.record.num_accepted_draft_tokens == 0
        if sampling is GREEDY:
            assert list(generation.token_ids) == plain(target, PROMPTS[1], 12)
