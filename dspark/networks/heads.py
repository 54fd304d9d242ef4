"""The light sequential heads: what the draft before says about the next one, and whether it will be accepted.

Every head works on any leading dimensions; `biases` is `bias`
for K drafts at once, the tokens before each being given.
"""

from typing import TypeAlias

import torch
from torch import Tensor, nn

from dspark.networks.config import DrafterConfig

State: TypeAlias = Tensor | None
"""What a head remembers of the drafts before; None at the first."""


class MarkovHead(nn.Module):
    """bias = W2 W1[x], low rank: each token's own bigram correction."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.markov_w1 = nn.Embedding(config.vocab_size, config.markov_rank)
        self.markov_w2 = nn.Linear(config.markov_rank, config.vocab_size, bias=False)

    def bias(self, previous: Tensor, hidden: Tensor, state: State) -> tuple[Tensor, State]:
        """One step: embedded previous token `[..., r]`, hidden `[..., d]`; bias `[..., V]`, and no state."""
        return self.biases(previous, hidden), None

    def biases(self, previous: Tensor, hidden: Tensor) -> Tensor:
        """K steps: `[..., K, r]` and `[..., K, d]` to `[..., K, V]`."""
        output: Tensor = self.markov_w2(previous)
        return output


class GatedHead(nn.Module):
    """bias = W2 (sigmoid(Wg [h; W1[x]]) * W1[x]): the position decides how much of the correction holds."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        rank = config.markov_rank
        self.markov_w1 = nn.Embedding(config.vocab_size, rank)
        self.markov_w2 = nn.Linear(rank, config.vocab_size, bias=False)
        self.gate_proj = nn.Linear(config.hidden_size + rank, rank)

    def bias(self, previous: Tensor, hidden: Tensor, state: State) -> tuple[Tensor, State]:
        """One step: embedded previous token `[..., r]`, hidden `[..., d]`; bias `[..., V]`, and no state."""
        return self.biases(previous, hidden), None

    def biases(self, previous: Tensor, hidden: Tensor) -> Tensor:
        """K steps: `[..., K, r]` and `[..., K, d]` to `[..., K, V]`."""
        gate = self.gate_proj(torch.cat([hidden, previous], -1)).sigmoid()
        output: Tensor = self.markov_w2(gate * previous)
        return output


class RecurrentHead(nn.Module):
    """A gated recurrence over the drafts: z = [s; W1[x]; h], one joint linear for gate, candidate and output, in that order."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        rank = config.markov_rank
        self.markov_w1 = nn.Embedding(config.vocab_size, rank)
        self.markov_w2 = nn.Linear(rank, config.vocab_size, bias=False)
        self.joint_proj = nn.Linear(2 * rank + config.hidden_size, 3 * rank)

    def bias(self, previous: Tensor, hidden: Tensor, state: State) -> tuple[Tensor, State]:
        """One step as in `MarkovHead.bias`; the state `[..., r]` starts at 0 (None)."""
        state = torch.zeros_like(previous) if state is None else state
        joint = self.joint_proj(torch.cat([state, previous, hidden], -1))
        gate, candidate, output = joint.chunk(3, -1)
        gate = gate.sigmoid()
        return self.markov_w2(output.tanh()), gate * state + (1 - gate) * candidate.tanh()

    def biases(self, previous: Tensor, hidden: Tensor) -> Tensor:
        """K steps: `[..., K, r]` and `[..., K, d]` to `[..., K, V]`."""
        state: State = None
        found = []
        for step in range(previous.shape[-2]):
            bias, state = self.bias(previous[..., step, :], hidden[..., step, :], state)
            found.append(bias)
        return torch.stack(found, -2)


class ConfidenceHead(nn.Module):
    """Logit of the probability that draft k is accepted given that those before it are: w [h_k ; W1[x_{k-1}]] + b.

    It never sees draft k itself; that is what makes schedules built on it lossless.
    """

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.proj = nn.Linear(config.hidden_size + (config.markov_rank if config.reads_markov else 0), 1)

    def forward(self, hidden: Tensor, previous: Tensor | None) -> Tensor:
        """Hidden `[..., d]` and embedded previous token `[..., r]` (None where it is not read) to `[...]`."""
        seen = hidden if previous is None else torch.cat([hidden, previous], -1)
        logit: Tensor = self.proj(seen).squeeze(-1)
        return logit


def sequential_head(config: DrafterConfig) -> MarkovHead | GatedHead | RecurrentHead | None:
    """The head that the configuration names; None for rank 0."""
    if config.markov_rank == 0:
        return None
    match config.markov_head_type:
        case "vanilla":
            return MarkovHead(config)
        case "gated":
            return GatedHead(config)
        case "rnn":
            return RecurrentHead(config)
