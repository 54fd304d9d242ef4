"""The zoo of model pairs: synthetic tables in every relation that makes a bug visible, and the trained pair.

A synthetic pair is two `TableLM`s. The target's rows are random and differ by context; the draft's rows stand in a chosen
`Relation` to them. `history="full"` makes every row depend on everything in the cache, so that one stale or missing entry
changes all later rows.
"""

import copy
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from verify.models.compat import forward_logits
from verify.models.recurrent import RecurrentTableLM
from verify.models.table import TableLM
from verify.protocol import ModelPair


class Relation(StrEnum):
    """How the draft's rows relate to the target's."""

    SAME = "same"
    CLOSE = "close"
    OPPOSED = "opposed"
    DISJOINT = "disjoint"
    PEAKED = "peaked"
    UNRELATED = "unrelated"
    UNEVEN = "uneven"


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSpec:
    """A synthetic pair as data, so that a failing case can be printed and made again.

    `zeros` is the share of each target row that has probability 0 (never the whole row); the draft keeps mass there, and
    token 0 stays possible. `sharpness` scales the random logits. `ties` rounds logits to a grid so that arg max ties occur.
    `recurrent`: the target has a recurrent state beside its cache; the draft has none. `draft_max_positions` None: the
    draft's context is as long as the target's; else it has a shorter one, and raises beyond it.
    """

    vocab_size: int
    relation: Relation = Relation.CLOSE
    seed: int = 0
    num_rows: int = 64
    history: Literal["full", "window"] = "full"
    window: int = 0
    sharpness: float = 1.0
    zeros: float = 0.0
    ties: bool = False
    max_positions: int = 256
    draft_max_positions: int | None = None
    recurrent: bool = False

    @property
    def name(self) -> str:
        """Short and unique: the identity of the pair in reports and file names."""
        parts = [f"{'recurrent-' if self.recurrent else ''}table-v{self.vocab_size}-{self.relation}"]
        parts += [f"zeros{self.zeros:g}"] if self.zeros else []
        parts += ["ties"] if self.ties else []
        parts += [f"window{self.window}"] if self.history == "window" else []
        parts += [f"sharp{self.sharpness:g}"] if self.sharpness != 1 else []
        return "-".join([*parts, f"seed{self.seed}"])


def target_probs_of(spec: TableSpec) -> Tensor:
    """The target's table, `[num_rows, V]` float64."""
    generator = torch.Generator().manual_seed(spec.seed)
    logits = torch.randn(spec.num_rows, spec.vocab_size, generator=generator, dtype=torch.float64) * spec.sharpness
    if spec.ties:
        logits = logits.clamp(-1.5, 1.5).round()
    if spec.zeros:
        hidden = torch.rand(spec.num_rows, spec.vocab_size, generator=generator) < spec.zeros
        survivor = torch.randint(spec.vocab_size, (spec.num_rows, 1), generator=generator)
        hidden.scatter_(1, survivor, False)
        logits = logits.masked_fill(hidden, -torch.inf)
    return logits.softmax(-1)


def draft_probs_of(spec: TableSpec, target_probs: Tensor) -> Tensor:
    """The draft's table in the relation asked for, `[num_rows, V]` float64."""
    generator = torch.Generator().manual_seed(spec.seed + 1_000_003)
    noise = torch.randn(target_probs.shape, generator=generator, dtype=torch.float64)
    match spec.relation:
        case Relation.SAME:
            return target_probs
        case Relation.CLOSE:
            # Where the target has a zero the draft still has mass: that is what a support bug needs.
            return (0.9 * target_probs + 0.1 / spec.vocab_size).log().add(0.5 * noise).softmax(-1)
        case Relation.OPPOSED:
            order = target_probs.argsort(-1)
            reversed_probs = torch.empty_like(target_probs).scatter(-1, order, target_probs.sort(-1, True).values)
            return 0.95 * reversed_probs + 0.05 / spec.vocab_size
        case Relation.DISJOINT:
            upper_half = target_probs.argsort(-1).argsort(-1) >= spec.vocab_size // 2
            return noise.masked_fill(upper_half, -torch.inf).softmax(-1)
        case Relation.PEAKED:
            return (4 * (target_probs + 1e-3).log() + noise).softmax(-1)
        case Relation.UNRELATED:
            return noise.softmax(-1)
        case Relation.UNEVEN:
            # From lost to sure of itself, by context: how sure the draft is tells which tokens came before.
            sharpness = 6 * torch.rand(spec.num_rows, 1, generator=generator, dtype=torch.float64)
            return (sharpness * (target_probs + 1e-3).log() + 0.5 * noise).softmax(-1)


def table_pair(spec: TableSpec, *, device: torch.device, dtype: torch.dtype, folder: Path) -> ModelPair:
    """Build both table models of a spec on the device."""
    target_probs = target_probs_of(spec)

    def build(probs: Tensor, kind: type[TableLM] = TableLM, *, max_positions: int | None = None) -> PreTrainedModel:
        model = kind.from_probs(
            probs,
            history=spec.history,
            window=spec.window,
            dtype=dtype,
            max_position_embeddings=max_positions or spec.max_positions,
            bounded=max_positions is not None,
        )
        torch.nn.Module.to(model, device)
        return model

    return ModelPair(
        name=spec.name,
        target=build(target_probs, RecurrentTableLM if spec.recurrent else TableLM),
        draft=build(draft_probs_of(spec, target_probs), max_positions=spec.draft_max_positions),
        vocab_size=spec.vocab_size,
        device=device,
        dtype=dtype,
        folder=folder,
    )


def checkpoint_pair(
    target_dir: Path, draft_dir: Path | None, *, device: torch.device, dtype: torch.dtype, folder: Path, name: str
) -> ModelPair:
    """Load two checkpoint directories; raises ValueError (value, rule, remedy) where that is impossible.

    `draft_dir` None: the target, loaded once, stands for the draft, where nothing drafts.
    """
    for label, directory in (("target", target_dir), ("draft", draft_dir)):
        if directory is not None and not (directory / "config.json").is_file():
            raise ValueError(
                f"{label} directory {str(directory)!r} has no config.json; it must be a transformers checkpoint directory. "
                "Give the folder that `save_pretrained` wrote."
            )
    target = _load(target_dir, device=device, dtype=dtype)
    draft = target if draft_dir is None else _load(draft_dir, device=device, dtype=dtype)
    vocab_size = int(target.config.get_text_config().vocab_size)
    draft_vocab_size = int(draft.config.get_text_config().vocab_size)
    if vocab_size != draft_vocab_size:
        raise ValueError(
            f"the target has {vocab_size} tokens and the draft {draft_vocab_size}; the suite judges pairs with one "
            "vocabulary. Give a draft of the same family and tokenizer."
        )
    return ModelPair(
        name=name,
        target=target,
        draft=draft,
        vocab_size=vocab_size,
        device=device,
        dtype=dtype,
        folder=folder,
        tokenizer_dir=target_dir if (target_dir / "tokenizer.json").is_file() else None,
        _target_dir=target_dir,
        _draft_dir=draft_dir,
    )


@torch.no_grad()
def near(model: PreTrainedModel, *, distance: float = 0.3) -> PreTrainedModel:
    """A copy that is often right: with noise in its weights, as much as moves its laws by `distance` (TV, on random text)."""
    copied = copy.deepcopy(model)
    generator = torch.Generator(model.device).manual_seed(0)
    vocab_size = int(model.config.get_text_config().vocab_size)
    text = torch.randint(vocab_size, (2, 64), generator=generator, device=model.device)
    laws = forward_logits(model, text).double().softmax(-1)
    for _ in range(50):
        for weight in copied.parameters():
            if weight.is_floating_point():
                noise = torch.randn(weight.shape, generator=generator, device=weight.device, dtype=torch.float32)
                weight.mul_(1 + 0.1 * noise.to(weight.dtype))
        if (forward_logits(copied, text).double().softmax(-1) - laws).abs().sum(-1).mean() / 2 >= distance:
            break
    return copied


def _load(directory: Path, *, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, local_files_only=True)
    torch.nn.Module.to(model, device)
    model.eval()
    with torch.inference_mode():
        logits = forward_logits(model, torch.zeros(1, 2, dtype=torch.long, device=device))
    if not bool(logits.isfinite().all()):
        raise ValueError(
            f"the model in {str(directory)!r} gives NaN or infinite logits in {dtype}; an oracle must be finite. "
            "Check the checkpoint, or choose another --dtype."
        )
    return model
