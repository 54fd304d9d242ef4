"""The decoder: all requests of a call in one batch, round after round until the last has its answer."""

from collections.abc import Iterator, Sequence

from transformers import PreTrainedModel

from dspark.batch import Batch
from dspark.causal_model import CausalModel
from dspark.drafters.protocol import Drafter
from dspark.request import DecodingRequest, Generation, validate
from dspark.row import Row
from dspark.scheduler.protocol import Scheduler
from dspark.verification import VerificationRule, verify_block


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
        rows = list(batch.rows)
        while batch.rows:
            batch.advance()
            for index, row in enumerate(rows):
                if row.error:
                    raise ValueError(f"request {index}: {row.error}")
            batch.release()
        return [row.generation() for row in rows]

    def stream(self, request: DecodingRequest) -> Iterator[list[int]]:
        """Yield the output round by round; closing the iterator cancels the request and leaves no trace."""
        return _rounds(self._batch([request]))

    def _batch(self, requests: Sequence[DecodingRequest]) -> Batch:
        for request in requests:
            validate(request, vocab_size=self.target.vocab_size, max_positions=self.target.max_positions)
        rows = [Row.of(request) for request in requests]
        return Batch(self.target, self.drafter, rows, scheduler=self.scheduler, verify=self.verify or verify_block)


def _rounds(batch: Batch) -> Iterator[list[int]]:
    (row,) = batch.rows
    while batch.rows:
        (emitted,) = batch.advance()
        if row.error:
            raise ValueError(row.error)
        batch.release()
        yield emitted
