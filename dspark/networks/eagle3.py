"""The EAGLE-3 network: one layer that continues the target's features, one draft at a time.

Entry t holds the fused features of token t and the embedding of token t + 1, has position t, attends to the entries up to
its own, and predicts token t + 2 (Li et al. 2025, arXiv 2503.01840). Where the target has not read token t yet, the layer's own
output at entry t - 1 takes the place of its features; training rolls the same way, so that later drafts are trained on what
they will see.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from dspark.networks.attention import Attention, GatedMLP, KeysValues, RMSNorm
from dspark.networks.config import DrafterConfig


class Eagle3Layer(nn.Module):
    """Attention over [normed embedding ; normed feature] (width 2 d), residual on the feature, gated MLP."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config, 2 * config.hidden_size)
        self.mlp = GatedMLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hidden_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def join(self, embedded: Tensor, features: Tensor) -> Tensor:
        """The attention's input, `[..., 2 d]`."""
        return torch.cat([self.input_layernorm(embedded), self.hidden_norm(features)], -1)

    def forward(self, features: Tensor, queries: Tensor, keys_values: KeysValues, mask: Tensor | None) -> Tensor:
        """Attention, residual and MLP: output features `[B, N, d]`."""
        states = features + self.self_attn.attend(queries, keys_values, mask)
        output: Tensor = states + self.mlp(self.post_attention_layernorm(states))
        return output


@dataclass(frozen=True, slots=True)
class Entries:
    """What the layer is given: features `[B, N, d]`, and what its attention makes of them where they stand, `[B, H, N, D]`."""

    features: Tensor
    queries: Tensor
    keys_values: KeysValues


class Eagle3Network(nn.Module):
    """Fused features in, features and logits out. `embed_tokens` and `lm_head` are frozen copies of the target's."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.fc = nn.Linear(config.feature_size, config.hidden_size, bias=False)
        self.midlayer = Eagle3Layer(config)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
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

    def entries(self, features: Tensor, next_token_ids: Tensor, positions: Tensor) -> Entries:
        """Entries of fused features `[B, N, d]`, the tokens after them and positions, both `[B, N]`."""
        attention = self.midlayer.self_attn
        joined = self.midlayer.join(self.embed_tokens(next_token_ids), features)
        queries, keys_values = attention(joined, attention.rotation(positions))
        return Entries(features, queries, keys_values)

    def outputs(self, entries: Entries, keys_values: KeysValues, mask: Tensor | None) -> Tensor:
        """Output features `[B, N, d]` of entries, their own keys among `keys_values` `[B, H, L, D]`; `mask` `[B, 1, N, L]`."""
        output: Tensor = self.midlayer(entries.features, entries.queries, keys_values, mask)
        return output

    def logits(self, outputs: Tensor) -> Tensor:
        """Draft logits `[..., V]` of output features `[..., d]`."""
        logits: Tensor = self.lm_head(self.norm(outputs))
        return logits

    def rolled(self, features: Tensor, token_ids: Tensor, anchors: Tensor, previous_token_ids: Tensor) -> Tensor:
        """Output features `[B, A, K, d]` of K drafts after every anchor, each fed by the output before it, for training.

        Args:
            features: `[B, T, F]` of the whole text.
            token_ids: `[B, T]`.
            anchors: `[B, A]`, positions of at least 1: before the first token there is nothing to continue.
            previous_token_ids: `[B, A, K]`, the token before each draft; the first is the anchor.

        """
        num_tokens = token_ids.shape[1]
        positions = torch.arange(num_tokens, device=token_ids.device).expand_as(token_ids)
        following = functional.pad(token_ids[:, 1:], (0, 1))  # the last entry is used by no anchor
        fused = self.fc(features)
        text = self.entries(fused, following, positions).keys_values  # [B, H, T, D]
        first = anchors - 1  # [B, A]
        before_anchor = positions[:, None, :] <= first.unsqueeze(-1)  # [B, A, T]
        features_there = fused.gather(1, first.unsqueeze(-1).expand(-1, -1, fused.shape[-1]))
        newest = self.entries(features_there, previous_token_ids[..., 0], first)
        output = self.outputs(newest, text, before_anchor[:, None])
        found = [output]
        own: list[KeysValues] = []
        alone = torch.eye(anchors.shape[1], dtype=torch.bool, device=anchors.device).expand(len(anchors), -1, -1)
        for step in range(1, previous_token_ids.shape[-1]):
            newest = self.entries(output, previous_token_ids[..., step], first + step)
            own.append(newest.keys_values)  # [B, H, A, D]
            joined = tuple(torch.cat([text[part], *(each[part] for each in own)], 2) for part in (0, 1))
            mask = torch.cat([before_anchor, *[alone] * step], -1)[:, None]  # [B, 1, A, T + step * A]
            output = self.outputs(newest, (joined[0], joined[1]), mask)
            found.append(output)
        return torch.stack(found, 2)
