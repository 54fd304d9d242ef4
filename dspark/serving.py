"""Many requests over time: a queue, shared rounds, a budget of tokens, preemption, and prefixes that are read once."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dspark.batch import Batch
from dspark.causal_model import CausalModel
from dspark.drafters.protocol import Drafter
from dspark.prefixes import Beginning, PrefixCache
from dspark.request import DecodingRequest, Generation, validate
from dspark.row import Row
from dspark.scheduler.protocol import Scheduler
from dspark.spare_rows import filling_holes
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
    """What has happened: rounds, each one forward of the target; preemptions; and tokens that were not read again."""

    num_rounds: int = 0
    num_preemptions: int = 0
    num_reused_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Job:
    """One request on its way."""

    ticket: int
    row: Row


class Engine:
    """Serves requests as they come: each joins the running batch as soon as the limits allow, and leaves it when it is done.

    All running requests share every round: one draft, one schedule (a `scheduler` weighs them against each other, so it sees
    the load), one forward of the target. Where the running texts outgrow the budget, the request that was started last gives up
    its cache and waits; later its text is read again and its random stream goes on where it stopped. A finished request
    leaves its keys and values behind, and a request that begins alike starts from a copy. Neither changes an output: one `seed`
    gives what `SpeculativeDecoder` gives (up to the arithmetic of the model; with a scheduler that looks at the load, the law).
    Beginnings are reused where the target's cache can be cropped at any length. For a request that joins or leaves the
    short forward's context moves one row, and grows at times; other caches are copied: there must be memory for two. A
    request that cannot go on (its logits are NaN, say) ends with its error in `failed`; the others do not notice.
    """

    def __init__(
        self,
        target: PreTrainedModel,
        drafter: Drafter | None = None,
        *,
        limits: Limits | None = None,
        scheduler: Scheduler | None = None,
        verify: VerificationRule | None = None,
    ) -> None:
        self.target = CausalModel.of(target)
        self.target.require_layers(drafter.feature_layers if drafter else ())
        self.drafter = drafter
        self.limits = limits or Limits()
        self.scheduler = scheduler
        self.verify = verify
        self.prefixes = PrefixCache(self.limits.max_prefixes if self.target.rewinds else 0)
        self.counters = Counters()
        self.waiting: deque[Job] = deque()
        self.running: list[Job] = []
        self.batch: Batch | None = None  # of the first running requests; the others have not begun
        self.finished: dict[int, Generation] = {}
        self.failed: dict[int, ValueError] = {}
        self.num_tickets = 0

    def submit(self, request: DecodingRequest) -> int:
        """Queue a request; returns its ticket, or raises ValueError where it cannot be answered."""
        self._require_possible(request)
        return self._queue(request).ticket

    @torch.inference_mode()
    def step(self) -> dict[int, list[int]]:
        """One round of all running requests together: the tokens emitted, by ticket.

        Answers then lie in `finished`, and errors of requests that could not go on in `failed`.
        """
        self._admit()
        if not self.running:
            return {}
        jobs = list(self.running)
        lengths = [len(job.row.token_ids) for job in jobs]
        streams = [job.row.source.get_state() for job in jobs]
        try:
            try:
                self._round()
            except ValueError:
                self._undo(jobs, lengths, streams)
                self._rounds_apart(jobs)
            self._settle()
        except BaseException:  # out of memory, Ctrl-C: the round may be half read, so the texts will be read again
            self._undo(jobs, lengths, streams)
            raise
        self._preempt()
        return {job.ticket: job.row.token_ids[length:] for job, length in zip(jobs, lengths, strict=True)}

    def cancel(self, ticket: int) -> None:
        """Forget a request, wherever it is."""
        self.waiting = deque(job for job in self.waiting if job.ticket != ticket)
        self._keep_running([job for job in self.running if job.ticket != ticket])
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
            if self.running and num_tokens(self.running) + len(row.token_ids) + growth > self.limits.max_tokens:
                return
            self.running.append(self.waiting.popleft())

    def _is_done(self, ticket: int) -> bool:
        """Whether a request is answered; raises its error where it has failed."""
        if ticket in self.failed:
            raise self.failed[ticket]
        return ticket in self.finished

    def _round(self) -> None:
        """One round, before which those that have not begun join the batch."""
        num_begun = len(self.batch.rows) if self.batch else 0
        for rows in alike([job.row for job in self.running[num_begun:]]):
            self._join(self._begin(rows))
        if self.batch:
            self.batch.advance()
            self.counters.num_rounds += 1

    def _rounds_apart(self, jobs: Sequence[Job]) -> None:
        """A round for each request by itself, so that one whose drafts or grammar raise ValueError fails alone."""
        for job in jobs:
            try:
                batch = self._begin([job.row])
                batch.advance()
            except ValueError as error:
                job.row.error = str(error)
            else:
                self._join(batch)
            self.counters.num_rounds += 1

    def _begin(self, rows: Sequence[Row]) -> Batch:
        """A batch that goes on from the rows' texts."""
        return Batch(
            self.target,
            self.drafter,
            rows,
            scheduler=self.scheduler,
            verify=self.verify or verify_block,
            beginning=self._known_beginnings(rows) if self.prefixes.entries else None,
        )

    def _known_beginnings(self, rows: Sequence[Row]) -> Beginning:
        """As much of each row as is known of it."""
        beginning, *others = [
            self.prefixes.begin(row.token_ids[:-1]) or Beginning.empty(self.target, self.drafter, 1) for row in rows
        ]
        for other in others:
            beginning.join(other)
        self.counters.num_reused_tokens += sum(beginning.context.lengths)
        return beginning

    def _join(self, batch: Batch) -> None:
        if self.batch:
            self.batch.join(batch)
        else:
            self.batch = batch

    def _settle(self) -> None:
        """Answer requests that are done; their keys and values are left to later ones."""
        for job in self.running:
            if job.row.error:
                self.failed[job.ticket] = ValueError(job.row.error)
            elif job.row.finish_reason:
                self.finished[job.ticket] = job.row.generation()
        if self.batch and self.prefixes.max_entries:
            everything = Beginning(self.batch.context, self.batch.session)
            for place, row in enumerate(self.batch.rows):
                if row.finish_reason and len(row.token_ids) > 1:  # the last token was not read; rejected drafts were
                    self.prefixes.keep(row.token_ids[:-1], everything.copy([place]))
        self._keep_running([job for job in self.running if not job.row.is_done])

    def _undo(self, jobs: Sequence[Job], lengths: Sequence[int], streams: Sequence[Tensor]) -> None:
        """Give up the batch; rows that the broken round has not moved on draw the same random numbers again."""
        self.batch = None
        for job, length, state in zip(jobs, lengths, streams, strict=True):
            if len(job.row.token_ids) == length:
                job.row.source.set_state(state)

    def _preempt(self) -> None:
        """While the budget is exceeded, the request started last waits; its cache is gone."""
        running = list(self.running)
        while len(running) > 1 and num_tokens(running) > self.limits.max_tokens:
            self.waiting.appendleft(running.pop())
            self.counters.num_preemptions += 1
        self._keep_running(running)

    def _keep_running(self, jobs: list[Job]) -> None:
        """Some of the running requests, in their order, go on; the others leave the batch."""
        self.running = jobs
        if not self.batch:
            return
        kept = {id(job.row) for job in jobs}
        places = [place for place, row in enumerate(self.batch.rows) if id(row) in kept]
        if not places:
            self.batch = None
        elif len(places) < len(self.batch.rows):
            self.batch.select(filling_holes(places))


def num_tokens(jobs: Sequence[Job]) -> int:
    """Tokens of their texts together."""
    return sum(len(job.row.token_ids) for job in jobs)


def alike(rows: Sequence[Row]) -> list[Sequence[Row]]:
    """Rows that are read together: all, unless their batch would be padding for the greater part; then each by itself."""
    lengths = [len(row.token_ids) for row in rows]
    together = max(lengths, default=0) * len(rows) <= 2 * sum(lengths)
    return ([rows] if rows else []) if together else [[row] for row in rows]
