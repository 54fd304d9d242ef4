"""The shape of a drafter network; field names as in the released configurations."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from transformers import PreTrainedConfig

MarkovHeadType = Literal["vanilla", "gated", "rnn"]
NUM_TAPPED_LAYERS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class DrafterConfig:
    """A drafter for one target: it has the target's vocabulary, hidden size and (frozen) embeddings.

    `target_layer_ids` are the target layers whose outputs it reads (-1: the embeddings; never the last one, of
    `num_target_layers`). `block_size` drafts at most are made a round, and `mask_token_id`, which no text holds, stands for those
    that are not made yet (`first_unused`). `markov_rank` 0: no sequential head (DFlash).
    `num_anchors` a sequence were trained on; no network reads it, but other readers of the released format want it.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    num_target_layers: int
    target_layer_ids: tuple[int, ...]
    mask_token_id: int
    block_size: int = 7
    markov_rank: int = 256
    markov_head_type: MarkovHeadType = "vanilla"
    enable_confidence_head: bool = True
    confidence_head_with_markov: bool = True
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    num_anchors: int = 512

    def __post_init__(self) -> None:
        for name, smallest in (
            ("vocab_size", 1),
            ("hidden_size", 1),
            ("num_hidden_layers", 1),
            ("num_attention_heads", 1),
            ("num_key_value_heads", 1),
            ("intermediate_size", 1),
            ("num_target_layers", 1),
            ("block_size", 1),
            ("head_dim", 1),
            ("mask_token_id", 0),
            ("num_anchors", 1),
            ("markov_rank", 0),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or value < smallest:
                raise ValueError(f"{name} is {value!r}; it must be an integer of at least {smallest}. Correct it.")
        for name in ("rms_norm_eps", "rope_theta"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ValueError(f"{name} is {value!r}; it must be a positive number. Correct it.")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads is {self.num_attention_heads} and num_key_value_heads {self.num_key_value_heads}; "
                "the first must be a multiple of the second. Correct one."
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim!r}; rotary positions need an even number. Use 64 or 128.")
        if self.markov_head_type not in get_args(MarkovHeadType):
            raise ValueError(
                f"markov_head_type is {self.markov_head_type!r}; it must be one of {', '.join(get_args(MarkovHeadType))}. "
                "Use vanilla."
            )
        layers = self.target_layer_ids
        if not layers or not all(-1 <= layer < max(self.num_target_layers - 1, 0) for layer in layers):
            raise ValueError(
                f"target_layer_ids is {list(layers)}; each must be from -1 (the embeddings) to "
                f"{self.num_target_layers - 2} (the last layer but one), and there must be one. Correct them."
            )
        if self.mask_token_id >= self.vocab_size:
            raise ValueError(
                f"mask_token_id is {self.mask_token_id}; it must be in [0, {self.vocab_size}). Use a token that no text holds."
            )

    @property
    def feature_size(self) -> int:
        """Width of the tapped hidden states of one position."""
        return len(self.target_layer_ids) * self.hidden_size

    @property
    def reads_markov(self) -> bool:
        """Whether the confidence head sees the token before the draft."""
        return self.confidence_head_with_markov and self.markov_rank > 0

    @classmethod
    def for_target(cls, target: PreTrainedConfig, *, mask_token_id: int, **choices: Any) -> "DrafterConfig":
        """A drafter in the proportions of its target; `choices` are fields to set otherwise."""
        text: Any = target.get_text_config()
        heads = int(text.num_attention_heads)
        num_layers = int(text.num_hidden_layers)
        given: dict[str, Any] = {
            "vocab_size": int(text.vocab_size),
            "hidden_size": int(text.hidden_size),
            "num_hidden_layers": 5,
            "num_attention_heads": heads,
            "num_key_value_heads": int(getattr(text, "num_key_value_heads", None) or heads),
            "head_dim": int(getattr(text, "head_dim", None) or text.hidden_size // heads),
            "intermediate_size": int(getattr(text, "intermediate_size", None) or 4 * text.hidden_size),
            "num_target_layers": num_layers,
            "target_layer_ids": evenly_spaced(num_layers),
            "mask_token_id": mask_token_id,
            "rms_norm_eps": float(getattr(text, "rms_norm_eps", 1e-6)),
            "rope_theta": _base(text.to_dict()),  # of scaled positions too: the drafter has plain ones of its own
        }
        return cls(**(given | choices))


def first_unused(vocab_size: int, token_ids: Iterable[int]) -> int:
    """The first id behind those of a tokenizer, for masks: no text holds it, and targets pad their vocabulary.

    Raises ValueError (value, rule, remedy) where the tokenizer has a token for every id.
    """
    found = 1 + max(token_ids, default=-1)
    if found >= vocab_size:
        raise ValueError(
            f"the tokenizer uses all {vocab_size} ids of the target; a mask has to be one that texts do not hold. Name the "
            "rarest token with --mask-token-id."
        )
    return found


def evenly_spaced(num_target_layers: int) -> tuple[int, ...]:
    """Up to five layers from the second to the last but two (36 layers: 1, 9, 17, 25, 33); the embeddings of a shallow target."""
    first, last = 1, num_target_layers - 3
    if last < first:
        return tuple(range(-1, num_target_layers - 1))
    count = min(NUM_TAPPED_LAYERS, last - first + 1)
    return tuple(round(first + index * (last - first) / max(count - 1, 1)) for index in range(count))


def rope_theta(config: dict[str, Any]) -> float:
    """The base of plain rotary positions; ValueError for scaled ones, which these networks do not have."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind != "default":
        raise ValueError(
            f"rope_type is {kind!r}; a drafter has plain rotary positions. Use a checkpoint with 'default'."
        )
    return _base(config)


def _base(config: dict[str, Any]) -> float:
    parameters = config.get("rope_parameters") or {}
    return float(parameters.get("rope_theta") or config.get("rope_theta") or 10_000.0)
