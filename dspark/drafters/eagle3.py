"""EAGLE-3: the target's features are continued by one layer, one draft after the other."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dspark.drafters.laws import IdleRows
from dspark.drafters.protocol import DraftSession, Proposal
from dspark.drafters.states import RowStates
from dspark.networks.eagle3 import Eagle3Network
from dspark.sampling import History, Processors, draw, one_hot_of_best


class Eagle3Drafter:
    """Drafts with an `Eagle3Network`, at most `block_size` tokens a round; `greedy` as in `DSparkDrafter`.

    A row whose text is one token drafts nothing: there is no feature to continue.
    """

    def __init__(self, network: Eagle3Network, *, greedy: bool = False) -> None:
        self.network = network.eval()
        self.greedy = greedy

    @property
    def feature_layers(self) -> tuple[int, ...]:
        """See `Drafter`."""
        return self.network.feature_layers

    def open(self, num_rows: int) -> DraftSession:
        """Begin a batch."""
        return Eagle3DraftSession(self, num_rows)


class Eagle3DraftSession:
    """Keys of the entries whose features came from the target; `waiting` holds, by row, features not yet turned into entries.

    Entry t needs token t + 1, so the newest feature waits for the anchor of the next round.
    """

    def __init__(self, drafter: Eagle3Drafter, num_rows: int) -> None:
        self.drafter = drafter
        self.network = drafter.network
        self.states = RowStates([self.network.midlayer.self_attn.empty(num_rows)])
        self.waiting: list[list[Tensor]] = [[] for _ in range(num_rows)]

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
        network = self.network
        lengths = tuple(
            min(want, network.block_size) if len(ids) > 1 else 0
            for want, ids in zip(num_draft_tokens, token_ids, strict=True)
        )
        if max(lengths) == 0:
            return Proposal.empty(len(lengths), processors)
        output = self._catch_up(token_ids)  # [B, 1, d]
        kept = self.states.lengths
        drafts = torch.zeros(len(lengths), max(lengths), dtype=torch.long, device=processors.device)  # [B, K]
        laws: list[Tensor] = []
        idle = IdleRows(lengths, processors.device)
        for position in range(max(lengths)):
            law = processors.probs(network.logits(output), history, drafts, start=position).squeeze(1)  # [B, V]
            if self.drafter.greedy:
                law = one_hot_of_best(law)
            law = idle.silence(law, position)
            laws.append(law)
            drafts[:, position] = draw(law, uniforms[:, position])
            if position + 1 < max(lengths):
                output = self._continue(output, drafts[:, position : position + 1], [1] * len(lengths))
        self.states.truncate(kept)
        return Proposal(drafts, torch.stack(laws, 1), lengths)

    def observe(self, *, token_ids: Tensor, counts: Sequence[int], features: Tensor | None) -> None:
        """See `DraftSession.observe`."""
        if features is None:
            raise ValueError("features is None; this drafter reads the target's hidden states. Tap `feature_layers`.")
        fused = self.network.fc(features.to(self.network.fc.weight.dtype))  # [B, T, d]
        for row, (own, count) in enumerate(zip(self.waiting, counts, strict=True)):
            own.append(fused[row, :count])

    def select(self, rows: Sequence[int]) -> None:
        """See `DraftSession.select`."""
        self.states.select(rows)
        self.waiting = [self.waiting[row] for row in rows]

    def join(self, other: "Eagle3DraftSession") -> None:
        """See `DraftSession.join`."""
        self.states.join(other.states)
        self.waiting = [*self.waiting, *other.waiting]

    def copy(self, rows: Sequence[int]) -> "Eagle3DraftSession":
        """See `DraftSession.copy`."""
        twin = copy.copy(self)
        twin.states = self.states.copy(rows)
        twin.waiting = [list(self.waiting[row]) for row in rows]
        return twin

    def rewind(self, lengths: Sequence[int]) -> list[int]:
        """See `DraftSession.rewind`; the last entry that stays was made with the last token that stays."""
        entries = [min(have, max(length - 1, 0)) for have, length in zip(self.states.lengths, lengths, strict=True)]
        for row, (entry, have, length) in enumerate(zip(entries, self.states.lengths, lengths, strict=True)):
            # Features go with their entry; those of later tokens have none yet.
            waiting = self.waiting[row] if entry == have else []
            self.waiting[row] = [torch.cat(waiting)[: length - entry]] if waiting else []
        self.states.truncate(entries)
        return [entry + sum(map(len, own)) for entry, own in zip(entries, self.waiting, strict=True)]

    def _catch_up(self, token_ids: Sequence[Sequence[int]]) -> Tensor:
        """Turn waiting features into entries; the newest entry's output, `[B, 1, d]` (rubbish in rows without one)."""
        device, empty = (
            self.network.fc.weight.device,
            self.network.fc.weight.new_zeros(0, self.network.config.hidden_size),
        )
        waiting = [torch.cat([empty, *own]) for own in self.waiting]
        self.waiting = [[] for _ in waiting]
        counts = [len(own) for own in waiting]
        following = [
            torch.tensor(ids[have + 1 : have + 1 + count], dtype=torch.long, device=device)
            for ids, have, count in zip(token_ids, self.states.lengths, counts, strict=True)
        ]
        outputs = self._continue(pad_sequence(waiting, True), pad_sequence(following, True), counts)
        newest = torch.tensor([max(count, 1) - 1 for count in counts], device=device)
        return outputs[torch.arange(len(counts), device=device), newest].unsqueeze(1)

    def _continue(self, features: Tensor, next_token_ids: Tensor, counts: Sequence[int]) -> Tensor:
        """Append entries `[B, T, d]` and return their outputs `[B, T, d]`; the first `counts[b]` of row b mean something."""
        positions = self.states.positions(features.shape[1])  # [B, T]
        entries = self.network.entries(features, next_token_ids, positions)
        self.states.append([entries.keys_values], counts)
        if min(counts) == features.shape[1] == 1:  # each sees what there is, its own entry the last
            [keys_values], seen = self.states.visible()
            return self.network.outputs(entries, keys_values, None if seen is None else seen[:, None, None])
        # All entries written, those of padding too: a query sees up to its own position, so each sees at least itself.
        keys_values = self.states.layers[0]
        visible = torch.arange(keys_values[0].shape[2], device=features.device) <= positions.unsqueeze(-1)  # [B, T, L]
        return self.network.outputs(entries, keys_values, visible[:, None])
