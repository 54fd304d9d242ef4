"""The target as an oracle: teacher-forced rows, the greedy continuation, and the exact law of whole outputs."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from verify.models.compat import forward_logits
from verify.models.law import next_token_laws, processed_logits
from verify.protocol import Request

MAX_BATCH_TOKENS = 16_384


class Reference:
    """Scores text under one model without a KV cache, so that no cache bug can reach the oracle."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        config = model.config.get_text_config()
        self.vocab_size = int(config.vocab_size)
        self.max_positions: int | None = getattr(config, "max_position_embeddings", None)

    def has_room(self, num_tokens: int) -> bool:
        """Whether the model can read so many tokens."""
        return self.max_positions is None or num_tokens <= self.max_positions

    def logits(self, request: Request, output: Sequence[int]) -> Tensor:
        """The model's rows at every output position, `[len(output), V]`, in the model's own dtype."""
        return self.logits_of([(request, output)])[0]

    def logits_of(self, scored: Sequence[tuple[Request, Sequence[int]]]) -> list[Tensor]:
        """As `logits`, for many outputs at once: equal lengths share a forward, so no row is padded."""
        groups: dict[int, list[int]] = {}
        for index, (request, output) in enumerate(scored):
            groups.setdefault(len(request.prompt_token_ids) + len(output), []).append(index)
        rows: list[Tensor] = [torch.empty(0)] * len(scored)
        for length, members in groups.items():
            per_batch = max(1, MAX_BATCH_TOKENS // max(1, length))
            for start in range(0, len(members), per_batch):
                batch = members[start : start + per_batch]
                text = [[*scored[i][0].prompt_token_ids, *scored[i][1]][: length - 1] for i in batch]
                token_ids = torch.tensor(text, device=self.model.device)  # [B, length - 1]
                with torch.inference_mode():
                    logits = forward_logits(self.model, token_ids)  # [B, length - 1, V]
                for row, index in enumerate(batch):
                    first = len(scored[index][0].prompt_token_ids) - 1
                    rows[index] = logits[row, first:]
        return rows

    def laws(self, request: Request, output: Sequence[int]) -> Tensor:
        """The law of each output token given all before it, `[len(output), V]` float64."""
        return next_token_laws(self.logits(request, output), request, output)

    def greedy(self, request: Request) -> tuple[int, ...]:
        """The target's own greedy continuation, one uncached forward a token."""
        output: list[int] = []
        for _ in range(request.max_new_tokens):
            scores = processed_logits(self.logits(request, [*output, 0]), request, output)
            output.append(int(scores[-1].argmax()))
            if output[-1] in request.stop_token_ids:
                break
        return tuple(output)

    def sequence_law(self, request: Request) -> dict[tuple[int, ...], float]:
        """Every output the target can emit, with its probability (product of next-token laws); for small cases.

        All prefixes of one length are scored in one forward.
        """
        finished: dict[tuple[int, ...], float] = {}
        frontier: dict[tuple[int, ...], float] = {(): 1.0}
        for _ in range(request.max_new_tokens):
            prefixes = list(frontier)
            rows = self.logits_of([(request, [*prefix, 0]) for prefix in prefixes])
            grown: dict[tuple[int, ...], float] = {}
            for prefix, logits in zip(prefixes, rows, strict=True):
                law = next_token_laws(logits, request, prefix)[-1]
                for token_id in law.nonzero().flatten().tolist():
                    output = (*prefix, token_id)
                    probability = frontier[prefix] * float(law[token_id])
                    (finished if token_id in request.stop_token_ids else grown)[output] = probability
            frontier = grown
        return finished | frontier
