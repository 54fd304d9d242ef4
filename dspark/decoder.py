"""The decoding loop: draft a block, verify it with one target forward, emit, roll back, repeat."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dspark.cache import Context, open_context
from dspark.causal_model import CausalModel
from dspark.drafters.protocol import Drafter, Proposal
from dspark.randomness import round_uniforms, uniform_source
from dspark.record import AcceptanceRecord
from dspark.request import DecodingRequest, Generation, validate
from dspark.sampling import History, Processors
from dspark.scheduler.protocol import Scheduler
from dspark.transfer import padded, to_device
from dspark.verification import Verification, VerificationRule, verify_block


class SpeculativeDecoder:
    """Decodes with a target and a drafter; the output follows the target's law exactly, whatever the drafter.

    One `seed` gives one output, alone or in any batch (up to the arithmetic of the models: batched matrix products
    round differently). Without a drafter, or with `num_draft_tokens=0`, the same loop decodes plainly. A `scheduler` decides
    how many of the drafts are verified; one that weighs the rows of a batch against each other makes a seed's output depend
    on the batch (its law does not). `verify` is another lossless rule in place of `verify_block`.
    """

    def __init__(
        self,
        target: PreTrainedModel,
        drafter: Drafter | None = None,
        *,
        scheduler: Scheduler | None = None,
        verify: VerificationRule | None = None,
    ) -> None:
        self.target = CausalModel.of(target)
        self.target.require_layers(drafter.feature_layers if drafter else ())
        self.drafter = drafter
        self.scheduler = scheduler
        self.verify = verify

    def generate(self, requests: Sequence[DecodingRequest]) -> list[Generation]:
        """Answer all requests as one batch, in order; raises ValueError where one cannot be answered."""
        if not requests:
            return []
        batch = self._batch(requests)
        while batch.running:
            batch.advance()
        return [row.generation() for row in batch.rows]

    def stream(self, request: DecodingRequest) -> Iterator[list[int]]:
        """Yield the output round by round; closing the iterator cancels the request and leaves no trace."""
        return _rounds(self._batch([request]))

    def _batch(self, requests: Sequence[DecodingRequest]) -> "Batch":
        for request in requests:
            validate(request, vocab_size=self.target.vocab_size, max_positions=self.target.max_positions)
        return Batch(self.target, self.drafter, requests, scheduler=self.scheduler, verify=self.verify or verify_block)


def _rounds(batch: "Batch") -> Iterator[list[int]]:
    while batch.running:
        yield batch.advance()[0]


@dataclass(slots=True, kw_only=True)
class Row:
    """One request on its way: `token_ids` is prompt and output; its last token is the anchor of the next round."""

    request: DecodingRequest
    source: torch.Generator
    token_ids: list[int]
    finish_reason: str = ""
    roles: list[str] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    drafted_per_step: list[int] = field(default_factory=list)
    accepted_per_step: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, request: DecodingRequest) -> "Row":
        """A request that has not begun."""
        source = uniform_source(request.seed)
        return cls(request=request, source=source, token_ids=list(request.prompt_token_ids))

    @property
    def num_remaining(self) -> int:
        """Tokens still to emit."""
        return self.request.max_new_tokens - len(self.roles)

    def emit(self, token_ids: list[int], logprobs: list[float], *, num_accepted: int, num_drafted: int) -> list[int]:
        """Append a round's tokens up to the first stop token and return them."""
        stops = self.request.stop_token_ids
        cut = next((index + 1 for index, token_id in enumerate(token_ids) if token_id in stops), 0)
        emitted = token_ids[:cut] if cut else token_ids
        num_accepted = min(num_accepted, len(emitted))
        last_role = "recovered" if num_accepted < num_drafted else "bonus"
        self.token_ids += emitted
        self.roles += (["accepted"] * num_accepted + [last_role])[: len(emitted)]
        self.logprobs += logprobs[: len(emitted)]
        self.drafted_per_step.append(num_drafted)
        self.accepted_per_step.append(num_accepted)
        self.finish_reason = "stop" if cut else "length" if self.num_remaining == 0 else ""
        return emitted

    def generation(self) -> Generation:
        """The finished answer."""
        return Generation(
            token_ids=tuple(self.token_ids[len(self.request.prompt_token_ids) :]),
            finish_reason=self.finish_reason,
            logprobs=tuple(self.logprobs) if self.request.logprobs else None,
            roles=tuple(self.roles),
            record=AcceptanceRecord.of(
                drafted_per_step=self.drafted_per_step, accepted_per_step=self.accepted_per_step
            ),
        )


class Batch:
    """The state of some requests; `advance` runs one round over those in `running`. Finished rows cost nothing.

    `rows` go on with requests that have begun elsewhere, from their text alone. `context` is what the target has read of the
    beginning of each row already, for drafters that read no features.
    """

    @torch.inference_mode()
    def __init__(
        self,
        target: CausalModel,
        drafter: Drafter | None,
        requests: Sequence[DecodingRequest],
        *,
        scheduler: Scheduler | None,
        verify: VerificationRule,
        rows: Sequence[Row] | None = None,
        context: Context | None = None,
    ) -> None:
        self.verify = verify
        self.rows = [Row.of(each) for each in requests] if rows is None else list(rows)
        self.running = list(range(len(requests)))
        dtype = torch.float64 if target.model.dtype == torch.float64 else torch.float32
        self.processors = Processors(requests, vocab_size=target.vocab_size, device=target.device, dtype=dtype)
        layers = drafter.feature_layers if drafter else ()
        self.context = open_context(target, len(requests), layers=layers) if context is None else context
        self.session = drafter.open(len(requests)) if drafter else None
        self.schedule = scheduler.open() if scheduler else None
        self._prefill()

    @torch.inference_mode()
    def advance(self) -> dict[int, list[int]]:
        """Run one round: the tokens emitted, by request."""
        rows = [self.rows[index] for index in self.running]
        token_ids = [row.token_ids for row in rows]
        wanted = [min(row.request.num_draft_tokens, row.num_remaining - 1) if self.session else 0 for row in rows]
        uniforms = round_uniforms(
            [row.source for row in rows],
            [min(row.request.num_draft_tokens, row.request.max_new_tokens - 1) for row in rows],
            width=max(wanted),
            device=self.processors.device,
        )
        history = self.processors.history(token_ids)
        proposal = self._propose(token_ids, wanted, history, uniforms.draft)
        drafts = proposal.draft_token_ids
        ends = [[ids[-1], length] for ids, length in zip(token_ids, proposal.draft_lengths, strict=True)]
        anchors, lengths = to_device(torch.tensor(ends), drafts.device).split(1, 1)  # [B, 1] each
        block = torch.cat([anchors, drafts], 1)  # [B, 1 + K]
        reading = self.context.extend(block, [1 + length for length in proposal.draft_lengths])
        scores = self.processors.scores(reading.logits, history, drafts)  # [B, 1 + K, V]
        target_probs = self.processors.law(scores)
        verification = self.verify(
            draft_token_ids=drafts,
            draft_probs=proposal.draft_probs,
            target_probs=target_probs,
            draft_lengths=lengths.squeeze(1),
            accept_uniforms=uniforms.accept[:, : drafts.shape[1]],
            final_uniforms=uniforms.final,
        )
        emitted = self._emit(rows, proposal, scores, target_probs, verification)
        self._roll_back(rows, block, reading.features)
        return emitted

    def _propose(self, token_ids: list[list[int]], wanted: list[int], history: History, uniforms: Tensor) -> Proposal:
        """Draft, and keep of each row what the scheduler admits."""
        if not self.session or not max(wanted):
            return Proposal.empty(len(wanted), self.processors)
        proposal = self.session.propose(
            token_ids=token_ids,
            num_draft_tokens=wanted,
            processors=self.processors,
            history=history,
            uniforms=uniforms,
        )
        if any(length > want for length, want in zip(proposal.draft_lengths, wanted, strict=True)):
            raise ValueError(
                f"the drafter proposed {proposal.draft_lengths} tokens where at most {wanted} were asked for; more "
                "would pass max_new_tokens. Respect num_draft_tokens."
            )
        if not self.schedule:
            return proposal
        if proposal.confidences is None:
            raise ValueError(
                "the drafter gives no confidences; a scheduler decides by them. Use a drafter with a confidence head, "
                "or no scheduler."
            )
        rows: list[list[float]] = proposal.confidences.tolist()
        admitted = self.schedule.admit([row[:length] for row, length in zip(rows, proposal.draft_lengths, strict=True)])
        return proposal.shortened(admitted)

    def _prefill(self) -> None:
        """Read all of each text but its last token, the first anchor."""
        heads = [row.token_ids[:-1] for row in self.rows]
        missing = [head[have:] for head, have in zip(heads, self.context.lengths, strict=True)]
        lengths = [len(head) for head in heads]
        features, device = None, self.processors.device
        if any(missing):
            reading = self.context.extend(padded(missing, device), [len(each) for each in missing], last=True)
            self.context.commit(lengths)
            features = reading.features
        if self.session and any(heads):
            self.session.observe(token_ids=padded(heads, device), counts=lengths, features=features)

    def _emit(
        self, rows: list[Row], proposal: Proposal, scores: Tensor, target_probs: Tensor, verification: Verification
    ) -> dict[int, list[int]]:
        drafts = proposal.draft_token_ids
        numbers = [verification.num_accepted[:, None], verification.final_token_ids[:, None], drafts]
        numbers.append(target_probs[..., 0].isnan().long())  # a NaN law is NaN everywhere
        # The host waits for the device here, for confidences where there is a schedule, and for log-probabilities if asked.
        outcome: list[list[int]] = torch.cat(numbers, 1).tolist()
        logprobs = self._logprobs(rows, drafts, scores, verification)
        emitted = {}
        for place, (index, row, numbers_of_row) in enumerate(zip(self.running, rows, outcome, strict=True)):
            num_accepted, final, *rest = numbers_of_row
            num_drafts = drafts.shape[1]
            if any(rest[num_drafts : num_drafts + num_accepted + 1]):
                position = len(row.roles) + rest[num_drafts:].index(1)
                raise ValueError(
                    f"the target's logits for request {index} at output position {position} are NaN or infinite, or "
                    "leave no token possible; a law needs finite ones. Check the checkpoint, the dtype and the bans."
                )
            emitted[index] = row.emit(
                [*rest[:num_accepted], final],
                logprobs[place] if logprobs else [],
                num_accepted=num_accepted,
                num_drafted=proposal.draft_lengths[place],
            )
        return emitted

    def _logprobs(
        self, rows: list[Row], drafts: Tensor, scores: Tensor, verification: Verification
    ) -> list[list[float]] | None:
        """Log-probabilities of drafts and final token under the processed target law; None where nobody asked.

        In greedy rows the temperature counts as 1, so that they say how sure the target was.
        """
        if not any(row.request.logprobs for row in rows):
            return None
        final = verification.final_token_ids[:, None]  # [B, 1]
        emitted = torch.cat([drafts, final], 1).scatter(1, verification.num_accepted[:, None], final)  # [B, K + 1]
        law = self.processors.sampled_law(scores)
        values: list[list[float]] = law.gather(-1, emitted.unsqueeze(-1)).squeeze(-1).log().tolist()
        return values

    def _roll_back(self, rows: list[Row], block: Tensor, features: Tensor | None) -> None:
        """Forget rejected drafts and finished rows."""
        kept = [place for place, row in enumerate(rows) if not row.finish_reason]
        self.running = [self.running[place] for place in kept]
        if not kept:
            return
        if self.session:
            counts = [1 + row.accepted_per_step[-1] for row in rows]
            self.session.observe(token_ids=block, counts=counts, features=features)
        self.context.commit([len(row.token_ids) - 1 for row in rows])
        if len(kept) < len(rows):
            self.processors = self.processors.select(kept)
            self.context.select(kept)
            if self.session:
                self.session.select(kept)
