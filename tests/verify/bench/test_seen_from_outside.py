"""Shares of time, rounds, memory and limits are seen without the decoder's help."""

import copy
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from dspark.conformance import make_decoder
from verify.bench.contestant import Contestant, PlainGeneration
from verify.bench.limit import bytes_per_forward, flops_per_token
from verify.bench.memory import peak_bytes
from verify.bench.rounds import count_rounds
from verify.bench.shares import measure_shares
from verify.models.pairs import Relation, TableSpec, checkpoint_pair, table_pair
from verify.protocol import ModelPair, Request, SamplingParams

FIXTURES = Path(__file__).parents[3] / "fixtures"
CPU = torch.device("cpu")


@pytest.fixture
def tables(tmp_path: Path) -> ModelPair:
    return table_pair(
        TableSpec(vocab_size=8, relation=Relation.CLOSE), device=CPU, dtype=torch.float64, folder=tmp_path
    )


class Slow(nn.Module):
    def __init__(self, clock: Any, seconds: float) -> None:
        super().__init__()
        self.clock, self.seconds = clock, seconds

    def forward(self, token_ids: Tensor, cache: Any = None) -> Tensor:
        self.clock.pass_by(self.seconds)
        return token_ids


class Cache:
    def __init__(self, length: int) -> None:
        self.length = length

    def get_seq_length(self) -> int:
        return self.length


def test_time_goes_where_it_was_spent(clock: Any, tmp_path: Path) -> None:
    class Law(Tensor):
        """A row whose operations take 3 seconds."""

        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is Tensor.softmax:
                clock.pass_by(3.0)
            return super().__torch_function__(func, types, args, kwargs or {})

    target, draft, other = Slow(clock, 10.0), Slow(clock, 2.0), Slow(clock, 1.0)
    models: Any = ModelPair(
        name="slow",
        target=target,  # type: ignore[arg-type]
        draft=draft,  # type: ignore[arg-type]
        vocab_size=8,
        device=CPU,
        dtype=torch.float32,
        folder=tmp_path,
    )
    law, short = torch.rand(2, 8).as_subclass(Law), torch.rand(2, 5).as_subclass(Law)

    def work() -> None:
        tokens = torch.zeros(1, 1)
        target(tokens, cache=Cache(0))
        for _ in range(2):
            copy.copy(draft)(tokens)  # shares the hooks
            other(tokens)  # a module of the decoder's own
            copy.copy(target)(tokens, cache=Cache(4))
            law.softmax(-1)
        short.softmax(-1)  # not over the vocabulary
        clock.pass_by(0.5)

    spent = measure_shares(work, models, clock=clock)
    assert dict(spent.seconds) == {"prefill": 10.0, "verify": 20.0, "draft": 6.0, "sampling": 6.0, "bookkeeping": 3.5}
    assert spent.num_verifications == 2
    assert not target._forward_hooks


def test_rounds_are_those_of_the_decoders_own_record(tables: ModelPair) -> None:
    contestant = Contestant(name="classic", decoder=make_decoder(tables), num_draft_tokens=3)
    requests = [
        Request(prompt_token_ids=(1, 2, seed), max_new_tokens=30, sampling=SamplingParams(), seed=seed)
        for seed in range(6)
    ]
    counts = count_rounds(contestant, requests, tables)
    records = [answer.record for answer in contestant.decode(requests, concurrency=1)]
    told = []
    for record in records:
        offsets = accumulate((kept + 1 for kept in record.accepted_per_step), initial=0)
        # Whole where a round of four tokens had room, however it ended.
        told += [kept + 1 for offset, kept in zip(offsets, record.accepted_per_step, strict=False) if offset + 4 <= 30]
    assert counts.source == "seen from the target's forwards"
    assert list(counts.lengths) == told
    assert counts.reached[0] == len(told)
    assert counts.accepted[0] == sum(length > 1 for length in told)
    assert all(reached == accepted for reached, accepted in zip(counts.reached[1:], counts.accepted[:-1], strict=True))
    assert counts.target_forwards == sum(record.num_spec_steps + 1 for record in records if record)


def test_plain_decoding_is_the_targets_own(tables: ModelPair) -> None:
    plain = Contestant(name="plain", decoder=PlainGeneration(tables), num_draft_tokens=0)
    greedy = [
        Request(prompt_token_ids=(1, 2, last), max_new_tokens=12, sampling=SamplingParams(temperature=0))
        for last in range(3)
    ]
    ours = make_decoder(tables).generate(greedy)
    together = plain.decode(greedy, concurrency=3)
    assert [list(each.token_ids) for each in together] == [list(each.token_ids) for each in ours]
    with pytest.raises(ValueError, match=r"prompts of \[1, 3\] tokens"):
        plain.decode([greedy[0], Request(prompt_token_ids=(1,), max_new_tokens=12)], concurrency=2)


def test_what_a_forward_reads_and_multiplies(tmp_path: Path) -> None:
    target = AutoModelForCausalLM.from_pretrained(FIXTURES / "target", dtype=torch.float32, local_files_only=True)
    parameters = sum(each.numel() for each in target.parameters())
    vectors = sum(each.numel() for each in target.parameters() if each.ndim == 1)
    assert bytes_per_forward(target) == 4 * parameters  # its embeddings are its head too
    assert flops_per_token(target) == 2 * (parameters - vectors)
    target.lm_head.weight = nn.Parameter(target.lm_head.weight.clone())
    assert bytes_per_forward(target) == 4 * parameters
    assert flops_per_token(target) == 2 * (parameters - vectors)


def test_memory_at_the_peak_is_seen() -> None:
    size = 64 * 1024**2

    def work() -> None:
        torch.ones(size, dtype=torch.uint8)

    peak, how = peak_bytes(work, device=CPU)
    if peak is None:
        pytest.skip(how)
    idle, _ = peak_bytes(lambda: None, device=CPU)
    assert idle is not None
    assert 0.9 * size < peak < 2 * size
    assert idle < 0.2 * size


def test_prompts_are_of_one_length_and_held_out(tmp_path: Path) -> None:
    from verify.bench.prompts import read_prompts

    pair = checkpoint_pair(FIXTURES / "draft", None, device=CPU, dtype=torch.float32, folder=tmp_path, name="draft")
    prompts, kind = read_prompts(pair, num_tokens=20, at_most=10)
    assert len(set(prompts)) == 10
    assert {len(prompt) for prompt in prompts} == {20}
    assert "held-out" in kind
