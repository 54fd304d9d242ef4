"""Planted bugs of random streams and of their use (RNG)."""

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dspark.conformance import make_decoder
from dspark.randomness import RoundUniforms, round_uniforms, uniform_source
from dspark.sampling import draw
from dspark.verification import Verification, verify_block
from tests.mutants.acceptance import LAW
from tests.mutants.mutant import BATCH, EXACT, Mutant, PatchedDecoder


def coins_of_the_first_row(*arguments: Any, **keywords: Any) -> RoundUniforms:
    """Every row of the batch uses the uniforms of the first."""
    uniforms = round_uniforms(*arguments, **keywords)
    first = [each[:1].expand_as(each) for each in (uniforms.draft, uniforms.accept, uniforms.final)]
    return RoundUniforms(*first)


def stream_of_the_first_row(sources: Sequence[torch.Generator], *arguments: Any, **keywords: Any) -> RoundUniforms:
    """One generator serves the whole batch, row after row."""
    return round_uniforms([sources[0]] * len(sources), *arguments, **keywords)


def ignore_the_seed(seed: int | None) -> torch.Generator:
    """A generator seeded by the system whatever the request says."""
    return uniform_source(None)


def always_the_same_seed(seed: int | None) -> torch.Generator:
    """Requests without a seed all get seed 0."""
    return uniform_source(0 if seed is None else seed)


def coarse_seed(seed: int | None) -> torch.Generator:
    """Neighbouring seeds share a stream."""
    return uniform_source(None if seed is None else seed // 16)


_SHARED = torch.Generator()
_SHARED.seed()


def one_generator_for_all(seed: int | None) -> torch.Generator:
    """One generator serves all requests; a seed is set on it, and whoever comes without one goes on from there."""
    return _SHARED if seed is None else _SHARED.manual_seed(seed)


def draft_coin_again(*arguments: Any, **keywords: Any) -> RoundUniforms:
    """Draft and acceptance start from one seed: a draft's accept coin is the number it was drawn with."""
    uniforms = round_uniforms(*arguments, **keywords)
    return RoundUniforms(uniforms.draft, uniforms.draft, uniforms.final)


def accept_coin_again(*, accept_uniforms: Tensor, final_uniforms: Tensor, **keywords: Any) -> Verification:
    """The coin that rejected a draft draws its successor."""
    found = verify_block(accept_uniforms=accept_uniforms, final_uniforms=final_uniforms, **keywords)
    width = accept_uniforms.shape[1]
    if not width:
        return found
    rows = torch.arange(len(final_uniforms))
    coins = accept_uniforms[rows, found.num_accepted.clamp(max=width - 1)]
    rejected = found.num_accepted < keywords["draft_lengths"]
    coins = torch.where(rejected, coins, final_uniforms)
    return verify_block(accept_uniforms=accept_uniforms, final_uniforms=coins, **keywords)


def one_number_per_round(*arguments: Any, **keywords: Any) -> RoundUniforms:
    """Threads do not wait for each other: draft k + 1 is drawn with the number of draft k."""
    uniforms = round_uniforms(*arguments, **keywords)
    return RoundUniforms(uniforms.draft[:, :1].expand_as(uniforms.draft), uniforms.accept, uniforms.final)


def seeded_at_start(models: Any) -> Any:
    """A decoder whose requests without a seed share a generator, which begins at 0."""
    generator = torch.Generator().manual_seed(0)

    def source(seed: int | None) -> torch.Generator:
        return generator if seed is None else uniform_source(seed)

    return PatchedDecoder(make_decoder, {"dspark.row.uniform_source": source}, models)


def seeds_the_process_at_start(models: Any) -> Any:
    """A decoder that seeds torch when it is made, and draws for requests without a seed from torch's own generator."""
    torch.manual_seed(0)

    def source(seed: int | None) -> torch.Generator:
        return torch.default_generator if seed is None else uniform_source(seed)

    return PatchedDecoder(make_decoder, {"dspark.row.uniform_source": source}, models)


class ShortStream(torch.Generator):
    """A generator that knows where it began."""

    num_rounds = 0
    start: Tensor


def short_stream(seed: int | None) -> ShortStream:
    """The request's own generator, and where it began."""
    source = ShortStream()
    source.start = uniform_source(seed).get_state()
    return source


def again_after_128_rounds(sources: Sequence[ShortStream], *arguments: Any, **keywords: Any) -> RoundUniforms:
    """The counter of the rounds has 7 bits."""
    for source in sources:
        if source.num_rounds % 128 == 0:
            source.set_state(source.start)
        source.num_rounds += 1
    return round_uniforms(sources, *arguments, **keywords)


class Unseeded(torch.Generator):
    """The source of a request without a seed."""


def mark_unseeded(seed: int | None) -> torch.Generator:
    """The request's own generator, which can be told from a seeded one."""
    return uniform_source(seed) if seed is not None else Unseeded()


def another_sampler_without_seed(
    sources: Sequence[torch.Generator], num_draft_tokens: Sequence[int], **keywords: Any
) -> RoundUniforms:
    """Without a seed the numbers come from the system, and judge each draft by the number that drew it."""
    found = round_uniforms(sources, num_draft_tokens, **keywords)
    for row, source in enumerate(sources):
        if isinstance(source, Unseeded):
            found.draft[row] = torch.tensor([_SYSTEM.random() for _ in found.draft[row]], dtype=torch.float64)
            found.accept[row], found.final[row] = found.draft[row], _SYSTEM.random()
    return found


_SYSTEM = random.SystemRandom()


def global_generator(law: Tensor, uniform: Tensor) -> Tensor:
    """Drafts are drawn with torch's global generator."""
    return draw(law, torch.rand(uniform.shape, dtype=torch.float64, device=uniform.device))


def low_bits(seed: int | None) -> torch.Generator:
    """The seed is kept in 16 bits."""
    return uniform_source(seed if seed is None else seed % 2**16)


def rng(row: str, source: str, mechanism: str, patch: str, value: Any, check: str, **fields: Any) -> Mutant:
    """A bug of randomness; `also` holds further patches."""
    patches = {f"dspark.{name}": each for name, each in {patch: value, **fields.pop("also", {})}.items()}
    given: dict[str, Any] = {"properties": LAW, **fields}
    return Mutant(id=row, family="RNG", source=source, mechanism=mechanism, patches=patches, check=check, **given)


SOURCE, ROUND = "row.uniform_source", "batch.round_uniforms"
REPRODUCES: dict[str, Any] = {"properties": ("seeds reproduce", "streaming = non-streaming")}
TRT = "https://github.com/NVIDIA/TensorRT-LLM"
MUTANTS = (
    rng(
        "RNG-3",
        "https://github.com/vllm-project/vllm/issues/6038",
        "the request's seed is not used",
        SOURCE,
        ignore_the_seed,
        "test_08_randomness.py::test_seed_reproduces",
        **REPRODUCES,
    ),
    rng(
        "RNG-4a",
        f"{TRT}/pull/17599",
        "requests without a seed are reseeded with a constant",
        SOURCE,
        always_the_same_seed,
        "test_08_randomness.py::test_unseeded_calls_differ",
        properties=("streams differ",),
    ),
    rng(
        "RNG-4c",
        f"{TRT}/pull/17599",
        "one engine-wide generator: a request without a seed goes on with the numbers of the seed before it",
        SOURCE,
        one_generator_for_all,
        "test_08_randomness.py::test_unseeded_calls_differ",
        properties=("streams differ", "seeds reproduce"),
    ),
    rng(
        "RNG-4b",
        f"{TRT}/pull/17599",
        "one generator serves the batch: a request's output depends on its batch mates",
        ROUND,
        stream_of_the_first_row,
        "test_08_randomness.py::test_seed_reproduces_in_a_batch",
        **REPRODUCES,
    ),
    rng(
        "RNG-5",
        f"{TRT}/issues/19487",
        "requests of a batch share one stream",
        ROUND,
        coins_of_the_first_row,
        BATCH,
        properties=("product law of batches", "streams differ", "exact law of generated cases", "seeds reproduce"),
    ),
    rng(
        "RNG-8",
        "https://github.com/flashinfer-ai/flashinfer/pull/424",
        "random numbers are not unique per use: all drafts of a round are drawn with one",
        ROUND,
        one_number_per_round,
        EXACT,
    ),
    rng(
        "RNG-9",
        "https://github.com/vllm-project/vllm/pull/35398",
        "seeds are derived wrongly, so that neighbours share a stream",
        SOURCE,
        coarse_seed,
        "test_08_randomness.py::test_consecutive_seeds",
        properties=("streams are independent", "streams differ"),
    ),
    rng(
        "RNG-10",
        "https://github.com/ggml-org/llama.cpp/pull/27694",
        "draft sampler and rejection sampler start from the same seed: a draft is judged by the number that drew it",
        ROUND,
        draft_coin_again,
        EXACT,
        diagnosis=("coin_of_the_draft",),
    ),
    rng(
        "RNG-a",
        "derived",
        "requests without a seed have another sampler, which judges a draft by the number that drew it",
        SOURCE,
        mark_unseeded,
        "test_03_sampled_law.py::test_tables[table-v16-close-sharp1.5-seed301]",
        also={ROUND: another_sampler_without_seed},
        diagnosis=("coin_of_the_draft",),
    ),
    Mutant(
        id="RNG-4d",
        family="RNG",
        source=f"{TRT}/pull/17599",
        mechanism="the generator of requests without a seed is seeded with a constant when the decoder is made",
        make=seeded_at_start,
        check="test_08_randomness.py::test_fresh_decoders_differ",
        properties=("streams differ",),
    ),
    Mutant(
        id="RNG-4e",
        family="RNG",
        source=f"{TRT}/pull/17599",
        mechanism="torch's own generator, from which requests without a seed are drawn, is seeded when the decoder is made",
        make=seeds_the_process_at_start,
        check="test_08_randomness.py::test_fresh_decoders_differ",
        properties=("streams differ",),
    ),
    rng(
        "RNG-b",
        "derived",
        "the counter behind a stream overflows: after 128 rounds its numbers come again",
        SOURCE,
        short_stream,
        "test_08_randomness.py::test_long_streams",
        properties=("streams do not repeat",),
        also={ROUND: again_after_128_rounds},
    ),
    rng(
        "RNG-11",
        "https://github.com/local-inference-lab/vllm/pull/98",
        "drafts are drawn with the global generator",
        "drafters.model.draw",
        global_generator,
        "test_08_randomness.py::test_seed_reproduces",
        **REPRODUCES,
    ),
    rng(
        "RNG-13",
        "derived",
        "of a request's seed 16 bits are used: seeds that differ above them are one stream",
        SOURCE,
        low_bits,
        "test_08_randomness.py::test_seeds_differ[65536]",
        properties=("streams differ",),
    ),
    rng(
        "RNG-12",
        "derived",
        "the coin that rejected a draft also draws the recovered token",
        "decoder.verify_block",
        accept_coin_again,
        EXACT,
        diagnosis=("coin_reused_for_recovery",),
    ),
)
