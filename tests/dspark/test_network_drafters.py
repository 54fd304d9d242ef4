"""Drafters that read hidden states: the decoder stays lossless, and its incremental state equals reading afresh."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from dspark import Request, SamplingParams, SpeculativeDecoder
from dspark.checkpoints import load_network
from dspark.drafters.dspark import DSparkDrafter
from dspark.drafters.eagle3 import Eagle3Drafter
from dspark.drafters.factory import Kind, load_drafter, random_drafter
from dspark.drafters.factory import drafter_of as drafter_of_network
from dspark.drafters.protocol import Proposal
from dspark.loading import default_drafter_dir, default_target_dir, load_model
from dspark.sampling import Processors
from dspark.scheduler.protocol import ScheduleSession
from tests.dspark.conftest import VOCAB_SIZE
from verify import protocol
from verify.exact.distance import total_variation
from verify.exact.enumeration import enumerate_outcomes
from verify.models.reference import Reference

Tiny = Callable[..., PreTrainedModel]
KINDS: tuple[Kind, ...] = ("dspark", "dflash", "eagle3")
PROMPTS = ((1, 2, 3), (4,), (5, 6, 7, 8, 9, 10))


def request(prompt: tuple[int, ...], **changes: Any) -> Request:
    settings = {"max_new_tokens": 14, "num_draft_tokens": 4, "seed": 3, "sampling": SamplingParams(temperature=0)}
    return Request(prompt_token_ids=prompt, **{**settings, **changes})


def decoder_of(target: PreTrainedModel, kind: Kind, **choices: Any) -> SpeculativeDecoder:
    drafter = random_drafter(target, kind=kind, dtype=torch.float64, seed=1, target_layer_ids=(-1, 0), **choices)
    return SpeculativeDecoder(target, drafter)


@pytest.mark.parametrize("family", ["qwen3", "llama", "mistral", "gpt2"])
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_equals_plain_decoding(tiny: Tiny, kind: Kind, family: str) -> None:
    target = tiny(family)
    asked = [request(prompt, num_draft_tokens=n) for prompt, n in zip(PROMPTS, (4, 2, 9), strict=True)]
    plain = SpeculativeDecoder(target).generate([request(prompt, num_draft_tokens=0) for prompt in PROMPTS])
    decoder = decoder_of(target, kind, block_size=5)
    together = decoder.generate(asked)
    assert [each.token_ids for each in together] == [each.token_ids for each in plain]
    assert max(max(each.record.drafted_per_step) for each in together) == 5  # never more than the block
    alone = [decoder.generate([each])[0] for each in asked]
    assert [each.record for each in alone] == [each.record for each in together]


@pytest.mark.parametrize("kind", KINDS)
def test_drafts_are_the_same_alone_and_in_a_ragged_batch(tiny: Tiny, kind: Kind) -> None:
    decoder = decoder_of(tiny("llama"), kind)
    asked = [
        request(prompt, seed=index, max_new_tokens=6 + 5 * index, sampling=SamplingParams(temperature=0.8))
        for index, prompt in enumerate(PROMPTS)
    ]
    together = decoder.generate(asked)
    for each, answer in zip(asked, together, strict=True):
        [alone] = decoder.generate([each])
        assert (alone.token_ids, alone.record) == (answer.token_ids, answer.record)
    assert sum(each.record.num_accepted_draft_tokens for each in together) > 0


@pytest.mark.parametrize(
    ("kind", "choices"),
    [
        ("dspark", {"markov_head_type": "vanilla"}),
        ("dspark", {"markov_head_type": "gated"}),
        ("dspark", {"markov_head_type": "rnn"}),
        ("dflash", {}),
        ("eagle3", {}),
    ],
)
def test_exact_law(tiny: Tiny, kind: Kind, choices: dict[str, Any]) -> None:
    target = tiny("qwen3", vocab_size=3, initializer_range=0.5)
    decoder = decoder_of(target, kind, **choices)
    asked = protocol.Request(prompt_token_ids=(1, 2), max_new_tokens=3, num_draft_tokens=2)
    found = enumerate_outcomes(lambda: decoder.generate([asked])[0].token_ids, max_paths=20_000)
    assert found.complete
    assert found.num_paths > 100
    assert total_variation(Reference(target).sequence_law(asked), found.law) < 1e-12


def test_confidences_come_with_the_confidence_head_only(tiny: Tiny) -> None:
    target = tiny("qwen3")
    seen: list[bool] = []

    class Schedule(ScheduleSession):
        def open(self) -> "Schedule":
            return self

        def admit(self, confidences: Any) -> tuple[int, ...]:
            seen.append(all(0 < each < 1 for row in confidences for each in row))
            return tuple(len(row) // 2 for row in confidences)

    for kind in ("dflash", "eagle3"):
        drafter = random_drafter(target, kind=kind, dtype=torch.float64, target_layer_ids=(0,))
        with pytest.raises(ValueError, match="gives no confidences"):
            SpeculativeDecoder(target, drafter, scheduler=Schedule()).generate([request(PROMPTS[0])])
    drafter = random_drafter(target, kind="dspark", dtype=torch.float64, target_layer_ids=(0,))
    decoder = SpeculativeDecoder(target, drafter, scheduler=Schedule())
    [answer] = decoder.generate([request(PROMPTS[0])])
    assert set(answer.record.drafted_per_step) <= {0, 1, 2}  # half of the 4 asked for, or of what is left at the end
    assert answer.record.drafted_per_step[0] == 2
    assert seen
    assert all(seen)


def test_random_weights_come_from_the_seed_alone(tiny: Tiny) -> None:
    target = tiny("qwen3")
    state = torch.random.get_rng_state()
    first, second, other = (
        random_drafter(target, kind="dspark", dtype=torch.float64, seed=seed, target_layer_ids=(0,)).network
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
    assert first.config.vocab_size == VOCAB_SIZE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_a_loaded_drafter_says_what_its_network_says(kind: Kind, dtype: torch.dtype) -> None:
    """`load_drafter` packs the network; its laws stay those of the modules, to rounding."""
    device = torch.device("cpu")
    target = load_model(default_target_dir(), device=device, dtype=dtype)
    directory = default_drafter_dir(kind)
    plain = drafter_of_network(load_network(directory, target=target, device=device, dtype=dtype))
    packed = load_drafter(directory, target=target, device=device, dtype=dtype, calibrated=False)
    assert any("forward" in vars(module) for module in packed.network.modules())
    assert not any("forward" in vars(module) for module in plain.network.modules())
    first, second = (proposal_of(drafter, dtype=dtype) for drafter in (plain, packed))
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(second.draft_probs, first.draft_probs, rtol=0, atol=tolerance)
    if first.confidences is not None and second.confidences is not None:
        torch.testing.assert_close(second.confidences, first.confidences, rtol=0, atol=tolerance)


def proposal_of(drafter: DSparkDrafter | Eagle3Drafter, *, dtype: torch.dtype) -> Proposal:
    """Seven drafts after two texts of unequal length, with features made up."""
    network, vocab_size = drafter.network, drafter.network.config.vocab_size
    generator = torch.Generator().manual_seed(0)
    texts = torch.randint(vocab_size, (2, 12), generator=generator)
    features = torch.randn(2, 11, network.config.feature_size, generator=generator).to(dtype)
    counts = [11, 6]
    session = drafter.open(2)
    session.observe(token_ids=texts[:, :-1], counts=counts, features=features)
    rows = [texts[row, : count + 1].tolist() for row, count in enumerate(counts)]
    requests = [Request(prompt_token_ids=tuple(row), max_new_tokens=9) for row in rows]
    processors = Processors(requests, vocab_size=vocab_size, device=torch.device("cpu"), dtype=torch.float32)
    return session.propose(
        token_ids=rows,
        num_draft_tokens=[7, 7],
        processors=processors,
        history=processors.history(rows),
        uniforms=torch.zeros(2, 7, dtype=torch.float64),  # the first token that is possible: the same of both
    )
