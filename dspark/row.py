"""One request on its way from a prompt to an answer."""

from dataclasses import dataclass, field

import torch

from dspark.randomness import uniform_source
from dspark.record import AcceptanceRecord
from dspark.request import DecodingRequest, Generation


@dataclass(slots=True, kw_only=True)
class Row:
    """`token_ids` is prompt and output; its last token is the anchor of the next round. `error` says why it cannot go on."""

    request: DecodingRequest
    source: torch.Generator
    token_ids: list[int]
    finish_reason: str = ""
    error: str = ""
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
    def is_done(self) -> bool:
        """Whether it is answered, or cannot go on."""
        return bool(self.finish_reason or self.error)

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

    def without_a_law(self, offset: int) -> str:
        """Why the row cannot go on where the law of a token of this round, `offset` places in, is NaN."""
        return (
            f"the target's logits at output position {len(self.roles) + offset} are NaN or infinite, or leave no token "
            "possible; a law needs finite ones. Check the checkpoint, the dtype and the bans."
        )

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
