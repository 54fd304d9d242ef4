"""The classic two-model scheme: a small causal LM drafts one token after the other."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from dspark.cache import open_context
from dspark.causal_model import CausalModel
from dspark.drafters.laws import IdleRows
from dspark.drafters.protocol import DraftSession, Proposal
from dspark.sampling import History, Processors, draw, one_hot_of_best
from dspark.transfer import padded


class ModelDrafter:
    """Drafts with a model over the target's token ids (the same tokenizer; its vocabulary may be shorter or longer).

    With `greedy` every draft is the best token of the draft law and declared as such (a one-hot row); otherwise drafts
    are sampled from the draft model's law under the request's own settings.
    """

    feature_layers: tuple[int, ...] = ()

    def __init__(self, model: PreTrainedModel, *, greedy: bool = False) -> None:
        self.model = CausalModel.of(model)
        self.greedy = greedy

    def open(self, num_rows: int) -> DraftSession:
        """Begin a batch."""
        return ModelDraftSession(self.model, num_rows, greedy=self.greedy)


class ModelDraftSession:
    """The draft model's context for one batch."""

    def __init__(self, model: CausalModel, num_rows: int, *, greedy: bool) -> None:
        self.model = model
        self.greedy = greedy
        self.context = open_context(model, num_rows)
        self.num_read_by_target = [0] * num_rows

    def propose(
        self,
        *,
        token_ids: Sequence[Sequence[int]],
        num_draft_tokens: Sequence[int],
        processors: Processors,
        history: History,
        uniforms: Tensor,
    ) -> Proposal:
        """See `DraftSession.propose`."""
        lengths = [self._affordable(want, len(ids)) for want, ids in zip(num_draft_tokens, token_ids, strict=True)]
        width = max(lengths)
        if width == 0:
            return Proposal.empty(len(lengths), processors)
        logits = self._catch_up([ids if length else [] for ids, length in zip(token_ids, lengths, strict=True)])
        drafts = torch.zeros(len(lengths), width, dtype=torch.long, device=processors.device)  # [B, K]
        laws = []
        idle = IdleRows(lengths, processors.device)
        for position in range(width):
            over_target = to_vocabulary(logits, processors.vocab_size)  # [B, 1, V]
            law = processors.probs(over_target, history, drafts, start=position).squeeze(1)  # [B, V]
            if self.greedy:
                law = one_hot_of_best(law)
            law = idle.silence(law, position)
            laws.append(law)
            drafts[:, position] = draw(law, uniforms[:, position])
            if position + 1 < width:
                counts = [int(position + 1 < length) for length in lengths]
                drafted = self._readable(drafts[:, position : position + 1])
                logits = self.context.extend(drafted, counts, last=True).logits
        draft_probs = torch.stack(laws, 1)  # [B, K, V]
        # The mass of the best token says how sure the draft is before it draws; the mass of the drawn one would say too much.
        return Proposal(drafts, draft_probs, tuple(lengths), draft_probs.amax(-1))

    def observe(self, *, token_ids: Tensor, counts: Sequence[int], features: Tensor | None) -> None:
        """See `DraftSession.observe`; drops the drafts that did not become text."""
        self.num_read_by_target = [read + count for read, count in zip(self.num_read_by_target, counts, strict=True)]
        self.context.commit([min(pair) for pair in zip(self.context.lengths, self.num_read_by_target, strict=True)])

    def select(self, rows: Sequence[int]) -> None:
        """See `DraftSession.select`."""
        self.context.select(rows)
        self.num_read_by_target = [self.num_read_by_target[row] for row in rows]

    def join(self, other: "ModelDraftSession") -> None:
        """See `DraftSession.join`."""
        self.context.join(other.context)
        self.num_read_by_target = [*self.num_read_by_target, *other.num_read_by_target]

    def copy(self, rows: Sequence[int]) -> "ModelDraftSession":
        """See `DraftSession.copy`."""
        twin = copy.copy(self)
        twin.context = self.context.copy(rows)
        twin.num_read_by_target = [self.num_read_by_target[row] for row in rows]
        return twin

    def rewind(self, lengths: Sequence[int]) -> list[int]:
        """See `DraftSession.rewind`; what the draft model lacks it reads before it drafts."""
        if self.model.rewinds:
            self.context.commit([min(pair) for pair in zip(self.context.lengths, lengths, strict=True)])
        else:
            self.context = open_context(self.model, len(lengths))
        self.num_read_by_target = list(lengths)
        return list(lengths)

    def _affordable(self, wanted: int, num_tokens: int) -> int:
        """As many drafts as the draft model has positions for: the last draft is not read by it."""
        limit = self.model.max_positions
        return wanted if limit is None else max(0, min(wanted, limit - num_tokens + 1))

    def _catch_up(self, token_ids: Sequence[Sequence[int]]) -> Tensor:
        """Read what the context lacks of each row's text; logits after it, `[B, 1, V]`."""
        missing = [list(ids[have:]) for ids, have in zip(token_ids, self.context.lengths, strict=True)]
        counts = [len(ids) for ids in missing]
        block = self._readable(padded(missing, self.model.device))
        logits = self.context.extend(block, counts, last=True).logits
        self.context.commit(self.context.lengths)
        return logits

    def _readable(self, token_ids: Tensor) -> Tensor:
        """Tokens that the draft model does not have are read as its last one: worse drafts, never a wrong output."""
        return token_ids.clamp(max=self.model.vocab_size - 1)


def to_vocabulary(logits: Tensor, vocab_size: int) -> Tensor:
    """Logits over the target's vocabulary, `[..., V]`: extra tokens are cut, missing ones get -inf."""
    difference = vocab_size - logits.shape[-1]
    if difference == 0:
        return logits
    return logits[..., :vocab_size] if difference < 0 else functional.pad(logits, (0, difference), value=-torch.inf)
