"""The forward of Llama and Qwen3 in as few operations as it takes.

Their arithmetic as the library has it: norms, angles and their cosines in float32 whatever the dtype, everything else in the
dtype of the model.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from dspark.grouped_attention import grouped_attention
from dspark.lean.linear import Linear, joint_linear
from dspark.lean.norm import Norm, rms_norm
from dspark.lean.recording import Recorder
from dspark.lean.rotation import Rotation, rotate, rotation_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """The weights of one layer; `head_norm` is that of queries and keys, None where the family has none."""

    input_norm: Norm
    queries_keys_values: Linear
    head_norm: Norm | None
    output: Linear
    inner_norm: Norm
    gate_up: Linear
    down: Linear


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Where the tokens of one forward stand and what they see.

    `positions` `[B or 1, T]`. `places` `[B * T]`: their slots, counted through all rows. Only the first `span` slots of a row are
    looked at. `mask` `[B or 1, 1, T, span]` is added to scores. Without one every token sees all of them, or with `causal`
    those up to its own, which is then the same number in span and block.

    With `kept` `[N]`, places in `[B * T]`, the others are padding that only attention computes: all else is `[1, N]`, `positions`
    and `places` too.
    """

    positions: Tensor
    places: Tensor
    span: int
    mask: Tensor | None
    causal: bool
    shape: tuple[int, int]
    kept: Tensor | None = None

    def packed(self, values: Tensor) -> Tensor:
        """`[B, T, ...]` without the padding, `[1, N, ...]`."""
        return values if self.kept is None else values.flatten(0, 1)[None, self.kept]

    def spread(self, values: Tensor) -> Tensor:
        """`[1, N, ...]` with zeros for the padding, `[B, T, ...]`."""
        if self.kept is None:
            return values
        num_rows, width = self.shape
        full = values.new_zeros(num_rows * width, *values.shape[2:]).index_copy_(0, self.kept, values[0])
        return full.view(num_rows, width, *values.shape[2:])


class LeanForward:
    """The weights of a model that has `standard_weights`, arranged for `read`."""

    def __init__(self, model: PreTrainedModel) -> None:
        config: Any = model.config
        inner: Any = model.base_model
        head: Any = model.get_output_embeddings()
        self.eps = float(config.rms_norm_eps)
        self.num_heads = int(config.num_attention_heads)
        self.num_key_value_heads = int(config.num_key_value_heads)
        self.frequencies: Tensor = inner.rotary_emb.inv_freq.float()  # [D / 2]
        self.head_dim = 2 * len(self.frequencies)
        self.embeddings: Tensor = inner.embed_tokens.weight.detach()
        self.layers = [self._layer(each) for each in inner.layers]
        self.norm = self._norm(inner.norm.weight)
        self.head = joint_linear([head.weight.detach()])
        self.recorder = Recorder() if self.embeddings.device.type == "cuda" else None

    def new_slots(self, num_rows: int, capacity: int) -> Tensor:
        """Empty keys and then values, `[layers, B, C, 2 H_kv, D]`; position n of a row is in slot n."""
        shape = (len(self.layers), num_rows, capacity, 2 * self.num_key_value_heads, self.head_dim)
        return self.embeddings.new_zeros(shape)

    def rotations(self, num_positions: int) -> Tensor:
        """The rotation of all positions, `[N, 2, 1, D]`."""
        positions = torch.arange(num_positions, device=self.frequencies.device)
        table = torch.stack(rotation_of(positions[:, None].float() * self.frequencies), 1)  # [N, 2, D]
        return table.to(self.embeddings.dtype).unsqueeze(2)

    def read(
        self,
        token_ids: Tensor,
        block: Block,
        slots: Tensor,
        rotations: Tensor,
        *,
        taps: tuple[int, ...] = (),
    ) -> tuple[Tensor, Tensor | None]:
        """Read `[B, T]`, each token seeing what stands before it and itself.

        Args:
            token_ids: `[B, T]`.
            block: where they stand.
            slots: as `new_slots` makes them; entries are written in place.
            rotations: as `rotations` makes them, for all positions.
            taps: layers whose outputs are wanted as features (-1: the embeddings).

        Returns:
            Outputs of the last layer, for `logits`, as the block packs them, and features `[B, T, F]` or None.

        """
        cos, sin = rotations[block.positions].unbind(2)  # [B or 1, T, 1, D] each
        keys, values = slots[:, :, : block.span].transpose(2, 3).chunk(2, 2)  # [layers, B, H_kv, span, D]
        seen = list(zip(keys.unbind(), values.unbind(), strict=True))
        written = slots.flatten(1, 2).unbind()  # per layer [B * C, 2 H_kv, D]
        states = functional.embedding(block.packed(token_ids), self.embeddings)  # [B, T, d]
        tapped = {-1: states}
        for index, layer in enumerate(self.layers):
            states = self._through(layer, states, (cos, sin), block, written[index], seen[index])
            if index in taps:
                tapped[index] = states
        return states, block.spread(torch.cat([tapped[layer] for layer in taps], -1)) if taps else None

    def logits(self, states: Tensor) -> Tensor:
        """Outputs of the last layer to logits, `[..., d]` to `[..., V]`."""
        return self.head(self.norm(states))

    def _through(
        self,
        layer: Layer,
        states: Tensor,
        rotation: Rotation,
        block: Block,
        written: Tensor,
        seen: tuple[Tensor, Tensor],
    ) -> Tensor:
        """One layer, `[B, T, d]` to the same."""
        num_heads, num_rotated = self.num_heads, self.num_heads + self.num_key_value_heads
        joint = layer.queries_keys_values(layer.input_norm(states))
        heads = joint.view(*joint.shape[:2], -1, self.head_dim)  # [B, T, H + 2 H_kv, D]
        rotated = heads[:, :, :num_rotated]
        if layer.head_norm is not None:
            rotated = layer.head_norm(rotated)
        rotate(rotated, rotation, out=heads[:, :, :num_rotated])
        written.index_copy_(0, block.places, heads[:, :, num_heads:].flatten(0, 1))
        queries = block.spread(heads[:, :, :num_heads]).transpose(1, 2)
        mixed = grouped_attention(queries, *seen, mask=block.mask, causal=block.causal)  # [B, H, T, D]
        states = states + layer.output(block.packed(mixed.transpose(1, 2).flatten(2)))
        gate, up = layer.gate_up(layer.inner_norm(states)).chunk(2, -1)
        return states + layer.down(functional.silu(gate) * up)

    def _layer(self, layer: Any) -> Layer:
        attention, inner = layer.self_attn, layer.mlp
        head_norm = None
        if hasattr(attention, "q_norm"):
            norms = [attention.q_norm.weight] * self.num_heads + [attention.k_norm.weight] * self.num_key_value_heads
            head_norm = self._norm(torch.stack(norms))
        return Layer(
            input_norm=self._norm(layer.input_layernorm.weight),
            queries_keys_values=_joint(attention.q_proj, attention.k_proj, attention.v_proj),
            head_norm=head_norm,
            output=_joint(attention.o_proj),
            inner_norm=self._norm(layer.post_attention_layernorm.weight),
            gate_up=_joint(inner.gate_proj, inner.up_proj),
            down=_joint(inner.down_proj),
        )

    def _norm(self, weight: Tensor) -> Norm:
        return rms_norm(weight.detach(), self.eps)


def _joint(*layers: Any) -> Linear:
    return joint_linear([layer.weight.detach() for layer in layers])
