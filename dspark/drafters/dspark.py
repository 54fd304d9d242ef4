"""DSpark: a block drafted in one parallel forward, then drawn left to right with a light sequential head."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dspark.drafters.laws import IdleRows
from dspark.drafters.protocol import DraftSession, Proposal
from dspark.drafters.states import RowStates
from dspark.networks.dspark import DSparkNetwork
from dspark.sampling import History, Processors, draw, one_hot_of_best
from dspark.transfer import to_device

MOST_UNREAD = 32  # tokens of a row whose features wait


class DSparkDrafter:
    """Drafts with a `DSparkNetwork`; without its heads that is DFlash.

    At most `block_size` drafts a round. With `greedy` every draft is the best token of its law and declared as such.
    `calibrate` corrects the confidences `[B, K]` that schedulers see, position by position.
    """

    def __init__(
        self,
        network: DSparkNetwork,
        *,
        greedy: bool = False,
        calibrate: Callable[[Tensor], Tensor] = lambda confidences: confidences,
    ) -> None:
        self.network = network.eval()
        self.greedy = greedy
        self.calibrate = calibrate

    @property
    def feature_layers(self) -> tuple[int, ...]:
        """See `Drafter`."""
        return self.network.feature_layers

    def open(self, num_rows: int) -> DraftSession:
        """Begin a batch."""
        return DSparkDraftSession(self, num_rows)


class DSparkDraftSession:
    """The projected context of the accepted tokens, row by row; a block leaves nothing behind.

    Features wait in `unread` until a block needs them, so that rounds without drafts cost nearly nothing.
    """

    def __init__(self, drafter: DSparkDrafter, num_rows: int) -> None:
        self.drafter = drafter
        self.network = drafter.network
        self.states = RowStates(self.network.empty_context(num_rows))
        self.unread: list[tuple[Tensor, Sequence[int]]] = []  # [B, T, F], of which the first counts[b] of row b

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
        lengths = tuple(min(want, network.block_size) for want in num_draft_tokens)
        anchors = to_device(torch.tensor([ids[-1] for ids in token_ids]), processors.device)  # [B]
        hidden = self._hidden(anchors)  # [B, block_size, d]
        base_logits = network.lm_head(hidden[:, : max(lengths)])  # [B, K, V]
        previous, state = anchors, None
        drafts = anchors.new_zeros(len(lengths), max(lengths))  # [B, K]
        laws: list[Tensor] = []
        confidence_logits: list[Tensor] = []
        idle = IdleRows(lengths, processors.device)
        for position in range(max(lengths)):
            logits, confidence, state = network.step(base_logits[:, position], hidden[:, position], previous, state)
            law = processors.probs(logits.unsqueeze(1), history, drafts, start=position).squeeze(1)  # [B, V]
            if self.drafter.greedy:
                law = one_hot_of_best(law)
            law = idle.silence(law, position)
            previous = draw(law, uniforms[:, position])
            drafts[:, position] = previous
            laws.append(law)
            if confidence is not None:
                confidence_logits.append(confidence)
        confidences = None
        if confidence_logits:
            confidences = self.drafter.calibrate(torch.stack(confidence_logits, 1).double().sigmoid())  # [B, K]
        return Proposal(drafts, torch.stack(laws, 1), lengths, confidences)

    def observe(self, *, token_ids: Tensor, counts: Sequence[int], features: Tensor | None) -> None:
        """See `DraftSession.observe`."""
        if features is None:
            raise ValueError("features is None; this drafter reads the target's hidden states. Tap `feature_layers`.")
        self.unread.append((features, counts))
        if sum(each.shape[1] for each, _ in self.unread) > MOST_UNREAD:
            self._read()

    def select(self, rows: Sequence[int]) -> None:
        """See `DraftSession.select`."""
        self._read()
        self.states.select(rows)

    def join(self, other: "DSparkDraftSession") -> None:
        """See `DraftSession.join`."""
        self._read()
        other._read()
        self.states.join(other.states)

    def copy(self, rows: Sequence[int]) -> "DSparkDraftSession":
        """See `DraftSession.copy`."""
        self._read()
        twin = copy.copy(self)
        twin.states, twin.unread = self.states.copy(rows), []
        return twin

    def rewind(self, lengths: Sequence[int]) -> list[int]:
        """See `DraftSession.rewind`."""
        self._read()
        self.states.truncate([min(pair) for pair in zip(self.states.lengths, lengths, strict=True)])
        return self.states.lengths

    def _read(self) -> None:
        """Project the features that wait, once for all later blocks."""
        if not self.unread:
            return
        features, counts = self.unread[0]
        if len(self.unread) > 1:
            own = [torch.cat([part[row, : given[row]] for part, given in self.unread]) for row in range(len(counts))]
            features, counts = pad_sequence(own, True), [len(each) for each in own]
        self.unread = []
        positions = self.states.positions(features.shape[1])
        self.states.append(self.network.context(features.to(self.network.fc.weight.dtype), positions), counts)

    def _hidden(self, anchors: Tensor) -> Tensor:
        """One backbone forward: the block's hidden states, `[B, K, d]`."""
        self._read()
        context, valid = self.states.visible()
        mask = None
        if valid is not None:
            own = valid.new_ones(len(valid), self.network.block_size)
            mask = torch.cat([valid, own], 1)[:, None, None]  # [B, 1, 1, L + K]
        starts = self.states.positions(1)  # [B, 1]
        return self.network.block(anchors.unsqueeze(1), starts, context, mask).squeeze(1)
