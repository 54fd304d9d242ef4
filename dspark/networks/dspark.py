"""The DSpark network: a parallel backbone fed by the target's hidden states, and a light sequential head.

Conventions that the numbers hang on: layer id -1 is the target's embedding output, i the output of its layer i; features are
concatenated in the order of `target_layer_ids`, `fc` has no bias and `hidden_norm` follows it; context positions are 0 to
n - 1, the block of the anchor at position n has positions n to n + K - 1; keys of context and block are normalised per head
and rotated each at its own position; a block sees the context before its anchor and all of itself; the anchor's own position
predicts the first draft. (arXiv 2607.05147; DFlash for the backbone.)
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from dspark.lean.rotation import Rotation
from dspark.networks.attention import Attention, BlockLayer, KeysValues, RMSNorm
from dspark.networks.config import DrafterConfig
from dspark.networks.heads import ConfidenceHead, State, sequential_head


class DSparkNetwork(nn.Module):
    """Backbone, sequential head and confidence head; without the heads it is DFlash. Tensor names as released.

    `embed_tokens` and `lm_head` are frozen copies of the target's.
    """

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.fc = nn.Linear(config.feature_size, config.hidden_size, bias=False)
        self.hidden_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.layers = nn.ModuleList(BlockLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.markov_head = sequential_head(config)
        self.confidence_head = ConfidenceHead(config) if config.enable_confidence_head else None
        for copied in (self.embed_tokens, self.lm_head):
            copied.requires_grad_(False)

    @property
    def block_size(self) -> int:
        """Drafts of one block."""
        return self.config.block_size

    @property
    def feature_layers(self) -> tuple[int, ...]:
        """The target layers it reads."""
        return self.config.target_layer_ids

    def context(self, features: Tensor, positions: Tensor) -> tuple[KeysValues, ...]:
        """Keys and values of every layer for features `[B, T, F]` at `positions` `[B, T]`."""
        context = self.hidden_norm(self.fc(features))  # [B, T, d]
        rotation = self._rotation(positions)
        return tuple(attention.keys_values(context, rotation) for attention in self._attentions())

    def empty_context(self, num_rows: int) -> tuple[KeysValues, ...]:
        """A context of no tokens, `[B, H, 0, D]` per layer."""
        return tuple(attention.empty(num_rows) for attention in self._attentions())

    def block(
        self, anchor_token_ids: Tensor, starts: Tensor, context: tuple[KeysValues, ...], mask: Tensor | None
    ) -> Tensor:
        """Hidden states of blocks, `[B, A, K, d]`.

        Args:
            anchor_token_ids: `[B, A]`, the last known token of each block.
            starts: `[B, A]`, its position.
            context: per layer, keys and values `[B, H, L, D]`.
            mask: `[B, 1, A * K, L + A * K]`, True where visible; None where there is one block, and it sees all.

        """
        token_ids = anchor_token_ids.new_full((*anchor_token_ids.shape, self.block_size), self.config.mask_token_id)
        token_ids[..., 0] = anchor_token_ids
        positions = (starts.unsqueeze(-1) + torch.arange(self.block_size, device=starts.device)).flatten(
            1
        )  # [B, A * K]
        states = self.embed_tokens(token_ids.flatten(1))
        rotation = self._rotation(positions)
        for layer, keys_values in zip(self.layers, context, strict=True):
            states = layer(states, rotation, keys_values, mask)
        hidden: Tensor = self.norm(states).view(*token_ids.shape, -1)
        return hidden

    def packed(self, features: Tensor, anchor_token_ids: Tensor, anchors: Tensor, mask: Tensor) -> Tensor:
        """Hidden states of many blocks of the same text, `[B, A, K, d]`, for training.

        `features` `[B, T, F]` of the whole text; `mask` `[B, 1, A * K, T + A * K]` shows each block the context before its anchor
        and itself.
        """
        positions = torch.arange(features.shape[1], device=features.device).expand(features.shape[:2])
        return self.block(anchor_token_ids, anchors, self.context(features, positions), mask)

    def teacher_forced(self, hidden: Tensor, previous_token_ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """Draft logits `[..., K, V]` and confidence logits `[..., K]` (None without that head), given all tokens before.

        `hidden` is `[..., K, d]`, `previous_token_ids` `[..., K]`, its first the anchor.
        """
        logits = self.lm_head(hidden)
        previous = None
        if self.markov_head is not None:
            previous = self.markov_head.markov_w1(previous_token_ids)
            logits = logits + self.markov_head.biases(previous, hidden)
        return logits, self._confidence(hidden, previous)

    def step(
        self, base_logits: Tensor, hidden: Tensor, previous_token_ids: Tensor, state: State
    ) -> tuple[Tensor, Tensor | None, State]:
        """Draft k of decoding: logits `[B, V]`, confidence logit `[B]` or None, and the head's next state (first: None).

        `base_logits` `[B, V]` and `hidden` `[B, d]` are row k of the block; `previous_token_ids` `[B]` is draft k - 1 (for k = 0
        the anchor).
        """
        previous = None
        if self.markov_head is not None:
            previous = self.markov_head.markov_w1(previous_token_ids)
            bias, state = self.markov_head.bias(previous, hidden, state)
            base_logits = base_logits + bias
        return base_logits, self._confidence(hidden, previous), state

    def _attentions(self) -> Iterator[Attention]:
        for layer in self.layers:
            assert isinstance(layer, BlockLayer)
            yield layer.self_attn

    def _rotation(self, positions: Tensor) -> Rotation:
        """The same in all layers."""
        return next(self._attentions()).rotation(positions)

    def _confidence(self, hidden: Tensor, previous: Tensor | None) -> Tensor | None:
        if self.confidence_head is None:
            return None
        logit: Tensor = self.confidence_head(hidden, previous if self.config.reads_markov else None)
        return logit
