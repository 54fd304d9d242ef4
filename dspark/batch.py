"""Rounds of several requests: draft a block, verify it with one target forward, emit, roll back."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dspark.causal_model import CausalModel
from dspark.drafters.protocol import Drafter, Proposal
from dspark.prefixes import Beginning
from dspark.randomness import round_uniforms
from dspark.row import Row
from dspark.sampling import History, Processors
from dspark.scheduler.protocol import Scheduler
from dspark.transfer import padded, to_device
from dspark.verification import Verification, VerificationRule


class Batch:
    """Requests that share their rounds: `advance` runs one over `rows`, `release` lets go of those that are done.

    Each row goes on from its text, whoever began it; `beginning` is what has been read of each already.
    """

    @torch.inference_mode()
    def __init__(
        self,
        target: CausalModel,
        drafter: Drafter | None,
        rows: Sequence[Row],
        *,
        scheduler: Scheduler | None,
        verify: VerificationRule,
        beginning: Beginning | None = None,
    ) -> None:
        self.verify = verify
        self.rows = list(rows)
        requests = [row.request for row in rows]
        dtype = torch.float64 if target.model.dtype == torch.float64 else torch.float32
        self.processors = Processors(requests, vocab_size=target.vocab_size, device=target.device, dtype=dtype)
        beginning = beginning or Beginning.empty(target, drafter, len(rows))
        self.context, self.session = beginning.context, beginning.session
        self.schedule = scheduler.open() if scheduler else None
        self._prefill()

    @torch.inference_mode()
    def advance(self) -> list[list[int]]:
        """Run one round: the tokens emitted, row by row; none in a row whose law is NaN, which has an `error` from then on."""
        rows = self.rows
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
        emitted = self._emit(proposal, scores, target_probs, verification)
        self._roll_back(block, reading.features, emitted)
        return emitted

    @torch.inference_mode()
    def join(self, other: "Batch") -> None:
        """Take over the rows of another batch of the same target and drafter; this one's schedule goes on."""
        self.rows += other.rows
        self.processors = self.processors.of([row.request for row in self.rows])
        self.context.join(other.context)
        if self.session and other.session:
            self.session.join(other.session)

    @torch.inference_mode()
    def select(self, places: Sequence[int]) -> None:
        """Keep some rows, in that order."""
        self.rows = [self.rows[place] for place in places]
        if not self.rows:
            return
        self.processors = self.processors.of([row.request for row in self.rows])
        self.context.select(places)
        if self.session:
            self.session.select(places)

    def release(self) -> None:
        """Let go of the rows that are done; the others stay in their order."""
        running = [place for place, row in enumerate(self.rows) if not row.is_done]
        if len(running) < len(self.rows):
            self.select(running)

    def _propose(self, token_ids: list[list[int]], wanted: list[int], history: History, uniforms: Tensor) -> Proposal:
        """Draft if the scheduler wants it, and keep of each row what it admits."""
        schedule = self.schedule
        if not self.session or not max(wanted) or (schedule and not schedule.wants_drafts(len(wanted))):
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
        if not schedule:
            return proposal
        if proposal.confidences is None:
            raise ValueError(
                "the drafter gives no confidences; a scheduler decides by them. Use a drafter with a confidence head, "
                "or no scheduler."
            )
        rows: list[list[float]] = proposal.confidences.tolist()
        admitted = schedule.admit([row[:length] for row, length in zip(rows, proposal.draft_lengths, strict=True)])
        return proposal.shortened(admitted)

    def _prefill(self) -> None:
        """Read all of each text but its last token, the first anchor."""
        heads = [row.token_ids[:-1] for row in self.rows]
        missing = [head[have:] for head, have in zip(heads, self.context.lengths, strict=True)]
        if not any(missing):
            return
        token_ids, counts = padded(missing, self.processors.device), [len(each) for each in missing]
        reading = self.context.extend(token_ids, counts, last=True)
        self.context.commit([len(head) for head in heads])
        if self.session:
            self.session.observe(token_ids=token_ids, counts=counts, features=reading.features)

    def _emit(
        self, proposal: Proposal, scores: Tensor, target_probs: Tensor, verification: Verification
    ) -> list[list[int]]:
        drafts = proposal.draft_token_ids
        numbers = [verification.num_accepted[:, None], verification.final_token_ids[:, None], drafts]
        numbers.append(target_probs[..., 0].isnan().long())  # a NaN law is NaN everywhere
        # The host waits for the device here, for confidences where there is a schedule, and for log-probabilities if asked.
        outcome: list[list[int]] = torch.cat(numbers, 1).tolist()
        logprobs = self._logprobs(drafts, scores, verification)
        emitted: list[list[int]] = []
        for place, (row, numbers_of_row) in enumerate(zip(self.rows, outcome, strict=True)):
            num_accepted, final, *rest = numbers_of_row
            token_ids, is_nan = rest[: drafts.shape[1]], rest[drafts.shape[1] :]
            if any(is_nan[: num_accepted + 1]):
                row.error = row.without_a_law(is_nan.index(1))
                emitted.append([])
                continue
            emitted.append(
                row.emit(
                    [*token_ids[:num_accepted], final],
                    logprobs[place] if logprobs else [],
                    num_accepted=num_accepted,
                    num_drafted=proposal.draft_lengths[place],
                )
            )
        return emitted

    def _logprobs(self, drafts: Tensor, scores: Tensor, verification: Verification) -> list[list[float]] | None:
        """Log-probabilities of drafts and final token under the processed target law; None where nobody asked.

        In greedy rows the temperature counts as 1, so that they say how sure the target was.
        """
        if not any(row.request.logprobs for row in self.rows):
            return None
        final = verification.final_token_ids[:, None]  # [B, 1]
        emitted = torch.cat([drafts, final], 1).scatter(1, verification.num_accepted[:, None], final)  # [B, K + 1]
        law = self.processors.sampled_law(scores)
        values: list[list[float]] = law.gather(-1, emitted.unsqueeze(-1)).squeeze(-1).log().tolist()
        return values

    def _roll_back(self, block: Tensor, features: Tensor | None, emitted: list[list[int]]) -> None:
        """Forget rejected drafts."""
        if all(row.is_done for row in self.rows):
            return
        if self.session:
            # Anchor and accepted drafts were read and are text: as many as were emitted, the last of which was not read.
            self.session.observe(token_ids=block, counts=[len(each) for each in emitted], features=features)
        self.context.commit([len(row.token_ids) - 1 for row in self.rows])
