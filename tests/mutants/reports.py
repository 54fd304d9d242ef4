"""Planted bugs of what is reported beside the tokens: logprobs (LPROB), counts (STAT), streams (STREAM), speed (PERF)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

from torch import Tensor

from dspark.batch import Batch
from dspark.decoder import SpeculativeDecoder, _rounds
from dspark.drafters.model import ModelDraftSession
from dspark.drafters.protocol import Proposal
from dspark.record import AcceptanceRecord
from dspark.request import Generation
from dspark.row import Row
from dspark.verification import Verification
from tests.mutants.mutant import Mutant
from tests.mutants.randomness import draft_coin_again
from verify.protocol import SamplingParams

logprobs = Batch._logprobs
emit = Row.emit
generation = Row.generation
generate = SpeculativeDecoder.generate
stream = SpeculativeDecoder.stream
propose = ModelDraftSession.propose
record_of = AcceptanceRecord.of


def placeholder(self: Batch, drafts: Tensor, *arguments: Any) -> list[list[float]]:
    """Logprob 0 for every token."""
    return [[0.0] * (drafts.shape[1] + 1) for _ in self.rows]


def raw_logprobs(self: Batch, *arguments: Any) -> Any:
    """Processed log-probabilities are claimed, raw ones are returned."""
    self.processors.sampled_law = lambda scores: scores.softmax(-1)  # type: ignore[method-assign]
    try:
        return logprobs(self, *arguments)
    finally:
        del self.processors.sampled_law


def before_top_p_and_min_p(self: Batch, *arguments: Any) -> Any:
    """Of the filters only top-k is in what is reported."""
    with mock.patch.multiple(self.processors, _top_p=None, _min_p=None):
        return logprobs(self, *arguments)


def row_of_a_neighbour(self: Batch, drafts: Tensor, scores: Tensor, verification: Verification) -> Any:
    """In a batch the log-probabilities come from another request's rows."""
    return logprobs(self, drafts, scores.roll(1, 0), verification)


def one_position_late(self: Batch, drafts: Tensor, scores: Tensor, verification: Verification) -> Any:
    """The rows of the block are picked one too early after the first."""
    return logprobs(self, drafts, scores[:, [0, *range(scores.shape[1] - 1)]], verification)


def behind_the_stop(self: Row, token_ids: list[int], logprobs: list[float], **keywords: Any) -> list[int]:
    """A stop cuts the token ids, and the log-probabilities of the whole block are returned."""
    emitted = emit(self, token_ids, logprobs, **keywords)
    self.logprobs += logprobs[len(emitted) : len(token_ids)]
    return emitted


def packed_for_those_who_ask(self: Batch, *arguments: Any) -> Any:
    """Log-probabilities are packed for the rows that asked, and read by a row's place in the batch."""
    values = logprobs(self, *arguments)
    if values is None:
        return None
    packed = [each for each, row in zip(values, self.rows, strict=True) if row.request.logprobs]
    return packed + packed[-1:] * (len(self.rows) - len(packed))


def drafts_behind_the_stop_count(self: Row, *arguments: Any, num_accepted: int, num_drafted: int) -> list[int]:
    """A counter runs over the accepted drafts, and past the stop token among them."""
    emitted = emit(self, *arguments, num_accepted=num_accepted, num_drafted=num_drafted)
    self.accepted_per_step[-1] = num_accepted
    return emitted


def record_of_the_first_row(self: SpeculativeDecoder, requests: Sequence[Any]) -> Any:
    """All requests of a batch are told the counts of the first."""
    answers = generate(self, requests)
    return [replace(each, record=answers[0].record) for each in answers]


def recovered_counts_as_accepted(self: Row, *arguments: Any, **keywords: Any) -> list[int]:
    """The token that takes the place of a rejected draft is said to be an accepted one."""
    emitted = emit(self, *arguments, **keywords)
    self.roles = ["accepted" if role == "recovered" else role for role in self.roles]
    return emitted


def only_the_first(self: Row) -> Generation:
    """Only the first token, which the prefill gave, has a log-probability."""
    whole = generation(self)
    return whole if whole.logprobs is None else replace(whole, logprobs=whole.logprobs[:1])


def counted(change: Any) -> Any:
    """A record of `change(drafted, accepted)`."""

    def of(*, drafted_per_step: Sequence[int], accepted_per_step: Sequence[int]) -> AcceptanceRecord:
        drafted, accepted = change(list(drafted_per_step), list(accepted_per_step))
        return record_of(drafted_per_step=drafted, accepted_per_step=accepted)

    return of


def first_token_of_each_chunk(batch: Batch) -> Any:
    """The client takes one token per chunk."""
    for chunk in _rounds(batch):
        yield chunk[:1]


def last_chunk_lost(batch: Batch) -> Any:
    """The chunk that ends the request is not sent."""
    for chunk in _rounds(batch):
        if batch.rows:
            yield chunk


def chunk_not_cut(self: Row, token_ids: list[int], *arguments: Any, **keywords: Any) -> list[int]:
    """The stream gets the block as it was verified, the answer is cut at the stop."""
    emit(self, token_ids, *arguments, **keywords)
    return token_ids


def without_settings(*names: str) -> Any:
    """The streaming handler builds a request of its own, in which these settings have their defaults."""

    def streamed(self: SpeculativeDecoder, request: Any) -> Any:
        neutral = SamplingParams()
        defaults = {name: getattr(neutral, name) for name in names}
        return stream(self, replace(request, sampling=replace(request.sampling, **defaults)))

    return streamed


def at_temperature_one(self: SpeculativeDecoder, request: Any) -> Any:
    """The streaming handler samples at temperature 1."""
    sampling = request.sampling
    return stream(self, replace(request, sampling=replace(sampling, temperature=1.0 if sampling.temperature else 0.0)))


def sampled_anew(self: SpeculativeDecoder, request: Any) -> Any:
    """Streams without a seed have a sampler of their own, which judges a draft by the number that drew it."""
    if request.seed is not None:
        return stream(self, request)
    with mock.patch("dspark.batch.round_uniforms", draft_coin_again):
        return iter(list(stream(self, request)))


def draft_nothing(self: ModelDraftSession, **keywords: Any) -> Proposal:
    """Drafts are made and thrown away."""
    proposal = propose(self, **keywords)
    return Proposal.empty(len(proposal.draft_lengths), keywords["processors"])


def bug(row: str, source: str, mechanism: str, patches: dict[str, Any], check: str, *properties: str) -> Mutant:
    """One bug of these families."""
    full = {f"dspark.{name}": value for name, value in patches.items()}
    family = row.split("-")[0]
    return Mutant(
        id=row, family=family, source=source, mechanism=mechanism, patches=full, check=check, properties=properties
    )


LOGPROBS, RECORD, ROUNDS = "batch.Batch._logprobs", "row.AcceptanceRecord.of", "decoder._rounds"
PLAIN = "test_11_logprobs.py::test_tables[{}]"
COUNTS = "test_10_acceptance.py::test_record[0.0]"
# A record that does not add up is refused wherever the first answer comes in.
ADDS_UP = ("accounting", "greedy identity")
VLLM = "https://github.com/vllm-project/vllm"
MUTANTS = (
    bug(
        "LPROB-1",
        "https://github.com/ggml-org/llama.cpp/issues/27972",
        "the speculative branch returns a placeholder for every logprob",
        {LOGPROBS: placeholder},
        PLAIN.format("plain"),
        "logprobs",
    ),
    bug(
        "LPROB-3",
        f"{VLLM}/pull/30846",
        "raw and processed log-probabilities are the same tensor: what is returned is not what is claimed",
        {LOGPROBS: raw_logprobs},
        PLAIN.format("temperature"),
        "logprobs",
    ),
    bug(
        "LPROB-a",
        "derived",
        "log-probabilities are taken before top-p and min-p",
        {LOGPROBS: before_top_p_and_min_p},
        PLAIN.format("top_p"),
        "logprobs",
    ),
    bug(
        "LPROB-4",
        f"{VLLM}/pull/29216",
        "row offsets are wrong in a batch: log-probabilities of another request",
        {LOGPROBS: row_of_a_neighbour},
        "test_11_logprobs.py::test_batch",
        "logprobs in a batch",
    ),
    bug(
        "LPROB-5",
        f"{VLLM}/pull/33391",
        "wrong rows are picked from the block",
        {LOGPROBS: one_position_late},
        PLAIN.format("plain"),
        "logprobs",
    ),
    bug(
        "LPROB-6",
        "https://github.com/sgl-project/sglang/pull/14046",
        "only the first token has a log-probability",
        {"row.Row.generation": only_the_first},
        PLAIN.format("plain"),
        "logprobs",
    ),
    bug(
        "LPROB-b",
        "derived",
        "a stop inside a block cuts the token ids, not their log-probabilities",
        {"row.Row.emit": behind_the_stop},
        PLAIN.format("stop_tokens"),
        "logprobs",
        "logprobs in a batch",
    ),
    bug(
        "LPROB-c",
        "derived",
        "log-probabilities are packed for the rows that asked for them and read by place in the batch",
        {LOGPROBS: packed_for_those_who_ask},
        "test_11_logprobs.py::test_batch",
        "logprobs in a batch",
    ),
    bug(
        "STAT-a",
        "derived",
        "all requests of a batch are told the counts of the first",
        {"decoder.SpeculativeDecoder.generate": record_of_the_first_row},
        "test_10_acceptance.py::test_record_in_a_batch",
        "accounting",
    ),
    bug(
        "STAT-b",
        "derived",
        "the token that takes the place of a rejected draft is said to be an accepted one",
        {"row.Row.emit": recovered_counts_as_accepted},
        "test_10_acceptance.py::test_roles",
        "accounting",
    ),
    bug(
        "STOP-11",
        "https://github.com/sgl-project/sglang/issues/39826",
        "a counter runs over the accepted drafts, past the stop token among them",
        {"row.Row.emit": drafts_behind_the_stop_count},
        "test_10_acceptance.py::test_record_of_stopped_requests",
        "accounting",
    ),
    bug(
        "STAT-1",
        "https://github.com/sgl-project/sglang/pull/11572",
        "the bonus token is counted as accepted",
        {RECORD: counted(lambda drafted, accepted: ([d + 1 for d in drafted], [a + 1 for a in accepted]))},
        COUNTS,
        "accounting",
    ),
    bug(
        "STAT-3",
        "https://github.com/ggml-org/llama.cpp/pull/22506",
        "everything drafted is counted as accepted",
        {RECORD: counted(lambda drafted, _: (drafted, drafted))},
        COUNTS,
        *ADDS_UP,
    ),
    bug(
        "STAT-4",
        "https://github.com/SafeAILab/EAGLE/issues/95",
        "the record holds the last round only",
        {RECORD: counted(lambda drafted, accepted: (drafted[-1:], accepted[-1:]))},
        COUNTS,
        *ADDS_UP,
    ),
    bug(
        "STAT-6",
        "https://github.com/NVIDIA/TensorRT-LLM/pull/14724",
        "the drafted count is rebuilt as the largest block times the rounds",
        {RECORD: counted(lambda drafted, accepted: ([max(drafted)] * len(drafted), accepted))},
        COUNTS,
        *ADDS_UP,
    ),
    bug(
        "STAT-7",
        "https://github.com/SafeAILab/EAGLE/issues/195",
        "num_draft_tokens counts the anchor: one more than was drafted",
        {RECORD: counted(lambda drafted, accepted: ([d + 1 for d in drafted], accepted))},
        COUNTS,
        *ADDS_UP,
    ),
    bug(
        "STREAM-1",
        f"{VLLM}/issues/30204",
        "a parser handles one token per delta; the others are lost",
        {ROUNDS: first_token_of_each_chunk},
        "test_14_streaming.py::test_stream[greedy]",
        "streaming = non-streaming",
    ),
    bug(
        "STREAM-2",
        f"{VLLM}/issues/42781",
        "the stream is truncated: the chunk that ends the request is not sent",
        {ROUNDS: last_chunk_lost},
        "test_14_streaming.py::test_stream[greedy]",
        "streaming = non-streaming",
    ),
    bug(
        "STREAM-3",
        "https://github.com/turboderp-org/exllamav2/issues/108",
        "the stream knows no stop token: it sends the block as it was verified",
        {"row.Row.emit": chunk_not_cut},
        "test_14_streaming.py::test_stream[stop]",
        "streaming = non-streaming",
    ),
    bug(
        "STREAM-a",
        "derived",
        "the streaming handler leaves penalties and bans out of the request that it builds",
        {
            "decoder.SpeculativeDecoder.stream": without_settings(
                "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "forbidden_token_ids"
            )
        },
        "test_14_streaming.py::test_settings",
        "streaming = non-streaming",
    ),
    bug(
        "STREAM-b",
        "derived",
        "the streaming handler leaves the temperature out of a sampled request",
        {"decoder.SpeculativeDecoder.stream": at_temperature_one},
        "test_14_streaming.py::test_law_of_a_stream",
        "streaming = non-streaming",
    ),
    bug(
        "STREAM-c",
        "derived",
        "streams without a seed have a sampler of their own, which judges a draft by the number that drew it",
        {"decoder.SpeculativeDecoder.stream": sampled_anew},
        "test_14_streaming.py::test_law_of_a_stream",
        "streaming = non-streaming",
    ),
    bug(
        "PERF-2",
        f"{VLLM}/issues/52107",
        "drafts are proposed but never verified",
        {"drafters.model.ModelDraftSession.propose": draft_nothing},
        "test_10_acceptance.py::test_speculates",
        "it speculates",
        "draft = target accepts everything",
        "greedy identity",
        "sampled law",
    ),
)
