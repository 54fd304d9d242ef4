"""Many requests over time: a queue, a budget of tokens, preemption, and prefixes that are read once."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from dspark.cache import BatchContext, Context
from dspark.causal_model import CausalModel
from dspark.decoder import Batch, Row
from dspark.drafters.protocol import Drafter
from dspark.request import DecodingRequest, Generation, validate
from dspark.verification import VerificationRule, verify_block


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much runs at once: `max_rows` requests whose texts have `max_tokens` tokens together, and `max_prefixes` kept texts.

    A request alone runs whatever its length.
    """

    max_rows: int = 8
    max_tokens: int = 8192
    max_prefixes: int = 8

    def __post_init__(self) -> None:
        for name, smallest in (("max_rows", 1), ("max_tokens", 1), ("max_prefixes", 0)):
            if getattr(self, name) < smallest:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {smallest}. Raise it.")


@dataclass(slots=True)
class Counters:
    """What has happened: rounds of one request, preemptions, and tokens that were not read again."""

    num_rounds: int = 0
    num_preemptions: int = 0
    num_reused_tokens: int = 0


@dataclass(slots=True)
class Job:
    """One request on its way; until it has a `batch`, its text and random stream are all that is kept."""

    ticket: int
    row: Row
    batch: Batch | None = None


class PrefixCache:
    """Texts that the target has read, with their keys and values; the one that was longest not used goes first."""

    def __init__(self, max_entries: int) -> None:
        self.max_entries = max_entries
        self.entries: list[tuple[list[int], BatchContext]] = []

    def begin(self, token_ids: Sequence[int]) -> BatchContext | None:
        """A context of its own that holds the longest known beginning of a text; None where nothing is known."""
        lengths = [common_length(known, token_ids) for known, _ in self.entries]
        if not any(lengths):
            return None
        place = max(range(len(lengths)), key=lengths.__getitem__)
        entry = self.entries.pop(place)
        self.entries.append(entry)
        context = entry[1].copy()
        context.commit([lengths[place]])
        return context

    def keep(self, token_ids: list[int], context: BatchContext) -> None:
        """Take over a context that has read exactly these tokens."""
        self.entries.append((token_ids, context))
        del self.entries[: max(0, len(self.entries) - self.max_entries)]


class Engine:
    """Serves requests as they come: each runs as soon as the limits allow, and rounds of the running ones take turns.

    Where the running texts outgrow the budget, the request that was started last gives up its cache and waits; later its
    text is read again and its random stream goes on where it stopped. A finished request leaves its keys and values behind,
    and a request that begins alike starts from a copy. Neither changes an output: one `seed` gives what
    `SpeculativeDecoder` gives (up to the arithmetic of the model). Prefixes are reused where the target's cache can be
    cropped and the drafter reads no features. Every row has a cache of its own; rounds are not batched. A request that
    cannot go on (its logits are NaN, say) ends with its error in `failed`; the others do not notice.
    """

    def __init__(
        self,
        target: PreTrainedModel,
        drafter: Drafter | None = None,
        *,
        limits: Limits | None = None,
        verify: VerificationRule | None = None,
    ) -> None:
        self.target = CausalModel.of(target)
        self.target.require_layers(drafter.feature_layers if drafter else ())
        self.drafter = drafter
        self.limits = limits or Limits()
        self.verify = verify
        self.reuses = self.target.crops and not self.target.has_window and not (drafter and drafter.feature_layers)
        self.prefixes = PrefixCache(self.limits.max_prefixes if self.reuses else 0)
        self.counters = Counters()
        self.waiting: deque[Job] = deque()
        self.running: list[Job] = []
        self.finished: dict[int, Generation] = {}
        self.failed: dict[int, ValueError] = {}
        self.num_tickets = 0

    def submit(self, request: DecodingRequest) -> int:
        """Queue a request; returns its ticket, or raises ValueError where it cannot be answered."""
        self._require_possible(request)
        return self._queue(request).ticket

    @torch.inference_mode()
    def step(self) -> dict[int, list[int]]:
        """One round of every running request: the tokens emitted, by ticket.

        Answers then lie in `finished`, and errors of requests that could not go on in `failed`.
        """
        self._admit()
        emitted = {}
        for job in list(self.running):
            try:
                emitted[job.ticket] = self._advance(job)
            except ValueError as error:
                self.running.remove(job)
                self.failed[job.ticket] = error
            except BaseException:  # out of memory, Ctrl-C: the round may be half read, so the text will be read again
                job.batch = None
                raise
        self._preempt()
        return emitted

    def cancel(self, ticket: int) -> None:
        """Forget a request, wherever it is."""
        self.waiting = deque(job for job in self.waiting if job.ticket != ticket)
        self.running = [job for job in self.running if job.ticket != ticket]
        self.finished.pop(ticket, None)
        self.failed.pop(ticket, None)

    def generate(self, requests: Sequence[DecodingRequest]) -> list[Generation]:
        """Answer the requests, in order; raises ValueError where one cannot be answered."""
        for request in requests:
            self._require_possible(request)
        tickets = [self._queue(request).ticket for request in requests]
        try:
            while not all(map(self._is_done, tickets)):
                self.step()
            return [self.finished[ticket] for ticket in tickets]
        finally:
            for ticket in tickets:
                self.cancel(ticket)

    def stream(self, request: DecodingRequest) -> Iterator[list[int]]:
        """Yield the output as it grows, whoever runs the rounds; closing the iterator cancels the request.

        The request is queued when the first tokens are asked for.
        """
        self._require_possible(request)
        return self._chunks(request)

    def _chunks(self, request: DecodingRequest) -> Iterator[list[int]]:
        job = self._queue(request)
        num_seen = len(request.prompt_token_ids)
        try:
            while True:
                fresh = job.row.token_ids[num_seen:]
                if fresh:
                    num_seen += len(fresh)
                    yield fresh
                elif self._is_done(job.ticket):
                    return
                else:
                    self.step()
        finally:
            self.cancel(job.ticket)

    def _require_possible(self, request: DecodingRequest) -> None:
        validate(request, vocab_size=self.target.vocab_size, max_positions=self.target.max_positions)

    def _queue(self, request: DecodingRequest) -> Job:
        job = Job(self.num_tickets, Row.of(request))
        self.waiting.append(job)
        self.num_tickets += 1
        return job

    def _admit(self) -> None:
        """Start waiting requests, oldest first, while there is room for them and their next round."""
        while self.waiting and len(self.running) < self.limits.max_rows:
            row = self.waiting[0].row
            growth = 1 + row.request.num_draft_tokens
            if self.running and self._num_tokens() + len(row.token_ids) + growth > self.limits.max_tokens:
                return
            self.running.append(self.waiting.popleft())

    def _is_done(self, ticket: int) -> bool:
        """Whether a request is answered; raises its error where it has failed."""
        if ticket in self.failed:
            raise self.failed[ticket]
        return ticket in self.finished

    def _advance(self, job: Job) -> list[int]:
        """One round of a job, the first of which begins with its text: the tokens emitted."""
        job.batch = job.batch or self._begin(job.row)
        emitted = job.batch.advance()[0]
        self.counters.num_rounds += 1
        if job.row.finish_reason:
            self.finished[job.ticket] = job.row.generation()
            self._retire(job, job.batch.context)
        return emitted

    def _begin(self, row: Row) -> Batch:
        """A batch of one that goes on from the row's text."""
        context = self.prefixes.begin(row.token_ids[:-1])
        if context is not None:
            self.counters.num_reused_tokens += context.lengths[0]
        elif self.prefixes.max_entries:
            context = BatchContext(self.target, 1)
        return Batch(
            self.target,
            self.drafter,
            [row.request],
            scheduler=None,
            verify=self.verify or verify_block,
            rows=[row],
            context=context,
        )

    def _retire(self, job: Job, context: Context) -> None:
        """Leave the text's keys and values to later requests; the last token was not read, rejected drafts were."""
        self.running.remove(job)
        text = job.row.token_ids[:-1]
        if self.prefixes.max_entries and isinstance(context, BatchContext) and text:
            context.commit([len(text)])
            self.prefixes.keep(text, context)

    def _preempt(self) -> None:
        """While the budget is exceeded, the request started last waits; its cache is gone."""
        while len(self.running) > 1 and self._num_tokens() > self.limits.max_tokens:
            job = self.running.pop()
            job.batch = None
            self.waiting.appendleft(job)
            self.counters.num_preemptions += 1

    def _num_tokens(self) -> int:
        return sum(len(job.row.token_ids) for job in self.running)


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common beginning."""
    pairs = zip(first, second, strict=False)
    return next((place for place, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))
