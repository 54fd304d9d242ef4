"""transformers' universal assisted generation: the assistant has a tokenizer, and so a vocabulary, of its own.

The pair's draft is given other token ids and one token that the target lacks. A trained pair keeps its tokenizer's text; a
table pair gets one letter a token. The drafts are thus those of the pair's draft, and what is judged is the translation.
"""

import copy
import json
from dataclasses import replace
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import BPE
from torch import Tensor, nn
from transformers import Cache, GenerationMixin, PreTrainedModel, PreTrainedTokenizerFast

from verify.adapters.transformers import CLAIMS, AssistedGeneration, constant_schedule
from verify.models.table import TableConfig, TableLM
from verify.protocol import ModelPair

FIRST_LETTER = 0x4E00
"""Of a block of over 20,000 letters that no tokenizer splits, joins or cleans up."""


class RenamedTable(PreTrainedModel, GenerationMixin):
    """A table model whose token `a` is the draft's token `meanings[a]` [V + 1], with an embedding and a head that can be pruned.

    The last meaning is of the token that the draft lacks: it gets the logit of a uniform law, and reads as token 0.
    """

    config_class = TableConfig

    def __init__(self, draft: TableLM, meanings: Tensor) -> None:
        size = len(meanings)
        super().__init__(TableConfig(**draft.config.to_dict() | {"vocab_size": size}))
        weights = draft.logits_table
        self.draft = draft
        self.meanings = meanings
        self.embedding: nn.Module = nn.Embedding(size, 1, device=weights.device, dtype=torch.float64)
        self.embedding.weight.data[:, 0] = meanings.clamp(max=size - 2)
        self.head: nn.Module = nn.Linear(size, size, bias=False, device=weights.device, dtype=weights.dtype)
        self.head.weight.data = torch.eye(size, device=weights.device, dtype=weights.dtype)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        past_key_values: Cache | None = None,
        **options: Any,
    ) -> Any:
        """The draft's output, with logits [B, T, V + 1] of the renamed tokens."""
        token_ids = self.embedding(input_ids)[..., 0].long()  # [B, T]
        options |= {"attention_mask": attention_mask, "position_ids": position_ids}
        output = self.draft(token_ids, cache=past_key_values if cache is None else cache, **options)
        logits = output.logits  # [B, T, V]
        foreign = torch.full_like(logits[..., :1], -1.0).mul(torch.tensor(float(logits.shape[-1])).log())
        output.logits = self.head(torch.cat([logits, foreign], -1)[..., self.meanings])
        return output

    def get_input_embeddings(self) -> nn.Module:
        """What the library prunes with the head."""
        return self.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Take the library's pruned embedding."""
        self.embedding = value

    def get_output_embeddings(self) -> nn.Module:
        """What the library prunes to the common tokens."""
        return self.head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Take the library's pruned head."""
        self.head = new_embeddings


def make_decoder(models: ModelPair) -> AssistedGeneration:
    """Raises ValueError for a pair that has neither tables nor a tokenizer."""
    generator = torch.Generator().manual_seed(0)
    meanings = torch.randperm(models.vocab_size + 1, generator=generator).to(models.device)  # [V + 1]
    if isinstance(models.draft, TableLM):
        tokenizer = _letters(torch.arange(models.vocab_size))
        assistant_tokenizer = _letters(meanings.cpu())
        assistant: PreTrainedModel = RenamedTable(models.draft, meanings)
    elif models.tokenizer_dir is not None:
        text = (models.tokenizer_dir / "tokenizer.json").read_text(encoding="utf-8")
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(text))
        assistant_tokenizer = _renamed_tokenizer(text, meanings.cpu())
        assistant = _renamed_checkpoint(models.draft, meanings)
    else:
        raise ValueError(
            f"the pair {models.name!r} has no tokenizer; universal assisted generation translates through text. "
            "Give a target directory with a tokenizer.json."
        )

    def speculation(count: int) -> dict[str, Any]:
        constant_schedule(assistant, count)
        return {"assistant_model": assistant, "tokenizer": tokenizer, "assistant_tokenizer": assistant_tokenizer}

    return AssistedGeneration(
        models,
        speculation=speculation,
        draft=assistant,
        capabilities=replace(CLAIMS, draft_model=True, standard_acceptance=True),
    )


def _letters(meanings: Tensor) -> PreTrainedTokenizerFast:
    """A tokenizer in which token `a` is the letter number `meanings[a]`; other letters are dropped."""
    vocabulary = {chr(FIRST_LETTER + letter): token_id for token_id, letter in enumerate(meanings.tolist())}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.decoder = Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def _renamed_tokenizer(text: str, meanings: Tensor) -> PreTrainedTokenizerFast:
    """The tokenizer of `text` (tokenizer.json) with other ids, and a letter more."""
    described = json.loads(text)
    names = {meaning: token_id for token_id, meaning in enumerate(meanings.tolist())}
    vocabulary = {token: names[token_id] for token, token_id in described["model"]["vocab"].items()}
    described["model"]["vocab"] = vocabulary | {chr(FIRST_LETTER): names[len(names) - 1]}
    for each in described["added_tokens"]:
        each["id"] = names[each["id"]]
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(described)))


def _renamed_checkpoint(draft: PreTrainedModel, meanings: Tensor) -> PreTrainedModel:
    """The draft with its embedding and head in the order of `meanings` [V + 1], and a token more."""
    assistant = copy.deepcopy(draft)
    assistant.resize_token_embeddings(len(meanings), mean_resizing=False)
    for module in (assistant.get_input_embeddings(), assistant.get_output_embeddings()):  # tied, or one each
        weight: Any = module.weight
        module.weight = nn.Parameter(weight.data[meanings], requires_grad=False)
    return assistant
