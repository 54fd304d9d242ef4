"""The DSpark network written a second time, from the formulas: plain loops, one row, one head, one key at a time.

`mistakes` switches single formulas to a wrong form, to show that the comparison would see it.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dspark.networks.config import DrafterConfig

Weights = Mapping[str, Tensor]


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / math.sqrt(float((x * x).mean()) + eps) * weight


def rope(x: Tensor, position: int, theta: float) -> Tensor:
    half = len(x) // 2
    turned = x.clone()
    for i in range(half):
        angle = position / theta ** (2 * i / len(x))
        a, b = float(x[i]), float(x[i + half])
        turned[i] = a * math.cos(angle) - b * math.sin(angle)
        turned[i + half] = b * math.cos(angle) + a * math.sin(angle)
    return turned


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def attention(
    w: Weights,
    name: str,
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    config: DrafterConfig,
    places: Sequence[int],
    start: int,
) -> list[Tensor]:
    """Every query sees every key; `places` are the positions of the keys, `start` that of the first query."""
    size, eps, theta = config.head_dim, config.rms_norm_eps, config.rope_theta
    group = config.num_attention_heads // config.num_key_value_heads
    found = []
    for offset, query in enumerate(queries):
        heads = []
        for head in range(config.num_attention_heads):
            own, shared = slice(head * size, (head + 1) * size), slice(head // group * size, (head // group + 1) * size)
            q = rope(
                norm((w[name + "q_proj.weight"] @ query)[own], w[name + "q_norm.weight"], eps), start + offset, theta
            )
            scores, values = [], []
            for key, place in zip(keys, places, strict=True):
                k = rope(norm((w[name + "k_proj.weight"] @ key)[shared], w[name + "k_norm.weight"], eps), place, theta)
                scores.append(float(q @ k) / math.sqrt(size))
                values.append((w[name + "v_proj.weight"] @ key)[shared])
            largest = max(scores)
            shares = [math.exp(score - largest) for score in scores]
            heads.append(sum(share * value for share, value in zip(shares, values, strict=True)) / sum(shares))
        found.append(w[name + "o_proj.weight"] @ torch.cat(heads))
    return found


def block_hidden(
    w: Weights, config: DrafterConfig, features: Tensor, anchor: int, *, mistakes: Sequence[str] = ()
) -> list[Tensor]:
    """Hidden states of the block whose anchor token follows the context `features` `[n, F]`."""
    eps = config.rms_norm_eps
    start = len(features)
    context = [norm(w["fc.weight"] @ row, w["hidden_norm.weight"], eps) for row in features]
    if "no hidden_norm" in mistakes:
        context = [w["fc.weight"] @ row for row in features]
    if "oldest context lost" in mistakes:
        context = context[1:]
    first = start - len(context)
    shift = 1 if "block one position late" in mistakes else 0
    tokens = [anchor] + [config.mask_token_id] * (config.block_size - 1)
    states = [w["embed_tokens.weight"][token] for token in tokens]
    for layer in range(config.num_hidden_layers):
        prefix = f"layers.{layer}."
        normed = [norm(state, w[prefix + "input_layernorm.weight"], eps) for state in states]
        keys = [*context, *(states if "keys not normed" in mistakes else normed)]
        places = [first + index for index in range(len(context))] + [start + shift + k for k in range(len(states))]
        attended = attention(w, prefix + "self_attn.", normed, keys, config, places, start + shift)
        if "causal block" in mistakes:
            attended = [
                attention(
                    w, prefix + "self_attn.", [normed[k]], keys[: len(context) + k + 1], config,
                    places[: len(context) + k + 1], start + k,
                )[0]
                for k in range(len(states))
            ]  # fmt: skip
        states = [state + extra for state, extra in zip(states, attended, strict=True)]
        for k, state in enumerate(states):
            x = norm(state, w[prefix + "post_attention_layernorm.weight"], eps)
            gate, up = w[prefix + "mlp.gate_proj.weight"] @ x, w[prefix + "mlp.up_proj.weight"] @ x
            states[k] = state + w[prefix + "mlp.down_proj.weight"] @ (silu(gate) * up)
    return [norm(state, w["norm.weight"], eps) for state in states]


def draft_logits(
    w: Weights, config: DrafterConfig, hidden: Sequence[Tensor], previous: Sequence[int]
) -> tuple[list[Tensor], list[float]]:
    """Logits of every draft and its confidence, given the tokens before each (the first is the anchor)."""
    rank = config.markov_rank
    s = torch.zeros(rank, dtype=torch.float64)
    logits, confidences = [], []
    for h, token in zip(hidden, previous, strict=True):
        e = w["markov_head.markov_w1.weight"][token]
        if config.markov_head_type == "vanilla":
            inner = e
        elif config.markov_head_type == "gated":
            z = w["markov_head.gate_proj.weight"] @ torch.cat([h, e]) + w["markov_head.gate_proj.bias"]
            inner = 1 / (1 + torch.exp(-z)) * e
        else:
            z = w["markov_head.joint_proj.weight"] @ torch.cat([s, e, h]) + w["markov_head.joint_proj.bias"]
            gate = 1 / (1 + torch.exp(-z[:rank]))
            inner = torch.tanh(z[2 * rank :])
            s = gate * s + (1 - gate) * torch.tanh(z[rank : 2 * rank])
        logits.append(w["lm_head.weight"] @ h + w["markov_head.markov_w2.weight"] @ inner)
        seen = torch.cat([h, e]) if config.confidence_head_with_markov else h
        c = float((w["confidence_head.proj.weight"] @ seen + w["confidence_head.proj.bias"])[0])
        confidences.append(1 / (1 + math.exp(-c)))
    return logits, confidences
