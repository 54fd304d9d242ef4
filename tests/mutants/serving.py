"""Planted bugs of a serving engine: shared prefixes (PREFIX), requests that wait (PREEMPT) and that join a batch (JOIN)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional

from dspark.batch import Batch
from dspark.cache import BatchContext
from dspark.conformance import make_serving_decoder
from dspark.prefixes import common_length
from dspark.randomness import uniform_source
from dspark.row import Row
from dspark.serving import Engine
from tests.mutants.mutant import Mutant

begin = Engine._begin
copied = BatchContext.copy
joined = BatchContext.join
valid_of = BatchContext._valid_of
batches_joined = Batch.join
preempt = Engine._preempt


def shared_with_everybody(self: BatchContext, rows: Sequence[int]) -> BatchContext:
    """A request writes into the very cache that others start from."""
    return copied(self, rows) if len(self.lengths) > 1 else self


def one_token_too_many(first: Sequence[int], second: Sequence[int]) -> int:
    """The first token that differs counts as common."""
    return min(common_length(first, second) + 1, len(first), len(second))


def by_the_first_token(first: Sequence[int], second: Sequence[int]) -> int:
    """A text that begins with the same token is taken for the same text."""
    return min(len(first), len(second)) if first[:1] == second[:1] else 0


def whole_pages(first: Sequence[int], second: Sequence[int]) -> int:
    """A match is rounded up to a page of four tokens, whose end may be another text's."""
    return min(-4 * (-common_length(first, second) // 4), len(first), len(second))


def stream_starts_anew(self: Engine, rows: Sequence[Row]) -> Batch:
    """A request that comes back draws its first random numbers again."""
    for row in rows:
        row.source = uniform_source(row.request.seed)
    return begin(self, rows)


def changed_on_the_way(change: Any) -> Any:
    """What `change(row)` does to each request that has to wait."""

    def preempt_with(self: Engine) -> None:
        before = {job.ticket for job in self.waiting}
        preempt(self)
        for job in self.waiting:
            if job.ticket not in before:
                change(job.row)

    return preempt_with


def last_token_again(row: Row) -> None:
    """The anchor is appended once more when the text is read again: the model sees it twice."""
    row.token_ids.insert(-1, row.token_ids[-1])


def drafts_kept(row: Row) -> None:
    """As many drafts as the last round had are taken for text, though nobody verified them."""
    row.emit([row.token_ids[-1]] * min(1, row.num_remaining), [0.0], num_accepted=1, num_drafted=1)


def serving(row: str, source: str, mechanism: str, name: str, value: Any, check: str, *properties: str) -> Mutant:
    """A bug of the engine; the name is of the module `dspark.serving` unless it says otherwise."""
    patches = {name if name.startswith("dspark.") else f"dspark.serving.{name}": value}
    return Mutant(
        id=row,
        family=row.partition("-")[0],
        source=source,
        mechanism=mechanism,
        patches=patches,
        make=make_serving_decoder,
        check=check,
        properties=properties,
    )


def padding_counts(self: BatchContext, num_slots: int) -> Tensor:
    """The slots that a shorter row is filled up with when it joins count as text."""
    return functional.pad(valid_of(self, self.num_slots), (0, num_slots - self.num_slots), value=True)


def joins_in_front(self: BatchContext, other: BatchContext) -> None:
    """The newcomer's keys and values are put before the others', its length behind theirs."""
    before, num_old, num_new = list(self.lengths), len(self.lengths), len(other.lengths)
    joined(self, other)
    lengths = [*before, *other.lengths]
    self.select([*range(num_old, num_old + num_new), *range(num_old)])
    self.lengths = lengths


def settings_of_those_who_were_there(self: Batch, other: Batch) -> None:
    """A newcomer is processed with the settings of the row that began last."""
    requests = [*self.processors.requests, *[self.processors.requests[-1]] * len(other.rows)]
    batches_joined(self, other)
    self.processors = self.processors.of(requests)


SHARED = ("test_06_state.py::test_shared_prefixes", "shared prefixes", "greedy identity", "calls are independent")
MANY = ("test_07_batches.py::test_many_requests", "more requests than run at once", "ragged batch", "finished rows")
SEEDS = ("test_08_randomness.py::test_seed_reproduces_in_a_batch", "seeds reproduce")
MUTANTS = (
    serving(
        "PREFIX-1",
        "https://github.com/vllm-project/vllm/pull/56734",
        "a request writes into the cached prefix that others start from",
        "dspark.cache.BatchContext.copy",
        shared_with_everybody,
        *SHARED,
    ),
    serving(
        "PREFIX-a",
        "derived",
        "the common prefix is matched one token too long",
        "dspark.prefixes.common_length",
        one_token_too_many,
        *SHARED,
    ),
    serving(
        "PREFIX-b",
        "derived",
        "prefixes are told apart by their first token: another request's is reused",
        "dspark.prefixes.common_length",
        by_the_first_token,
        *SHARED,
    ),
    serving(
        "PREFIX-c",
        "derived",
        "a match is rounded up to a whole page, the end of which is another request's",
        "dspark.prefixes.common_length",
        whole_pages,
        *SHARED,
    ),
    serving(
        "PREEMPT-1",
        "https://github.com/sgl-project/sglang/pull/2711",
        "an unverified draft is kept as text when a request has to wait",
        "Engine._preempt",
        changed_on_the_way(drafts_kept),
        *MANY,
    ),
    serving(
        "PREEMPT-a",
        "derived",
        "the last token is read twice when a request comes back",
        "Engine._preempt",
        changed_on_the_way(last_token_again),
        *MANY,
    ),
    serving(
        "PREEMPT-b",
        "derived",
        "a request that comes back begins its random stream anew",
        "Engine._begin",
        stream_starts_anew,
        *SEEDS,
    ),
    serving(
        "JOIN-a",
        "derived",
        "the padding behind a shorter row that joins the batch counts as text",
        "dspark.cache.BatchContext._valid_of",
        padding_counts,
        *MANY,
    ),
    serving(
        "JOIN-b",
        "derived",
        "keys and values of a row that joins the batch get another row's place",
        "dspark.cache.BatchContext.join",
        joins_in_front,
        *MANY,
    ),
    serving(
        "JOIN-c",
        "derived",
        "a row that joins the batch is processed with another row's settings",
        "dspark.batch.Batch.join",
        settings_of_those_who_were_there,
        "test_07_batches.py::test_mixed_processors",
        "mixed processors",
        "mixed sampling",
        "more requests than run at once",
    ),
)
