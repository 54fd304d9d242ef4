"""Planted bugs that pass for numerical noise (NUM)."""

from typing import Any

import torch
from torch import Tensor

from dspark.causal_model import CausalModel, Reading
from dspark.sampling import Processors, draw
from tests.mutants.acceptance import LAW
from tests.mutants.mutant import EXACT, GREEDY, Mutant

read = CausalModel.read
law = Processors.law


def reading_of(change: Any) -> Any:
    """A forward whose logits are changed by `change(logits, start)`; the context is what it should be."""

    def changed(self: CausalModel, token_ids: Tensor, cache: Any, **inputs: Any) -> Reading:
        start = 0 if cache is None else int(cache.get_seq_length())
        reading = read(self, token_ids, cache, **inputs)
        return Reading(change(reading.logits, start), reading.features)

    return changed


def narrow_kernel(logits: Tensor, start: int) -> Tensor:
    """Forwards of 2 to 6 tokens are off by 3e-2 of the logits' size, in a pattern that looks like noise."""
    if start == 0 or not 2 <= logits.shape[1] <= 6:
        return logits
    pattern = torch.sin(12.9898 * torch.arange(logits.numel(), dtype=logits.dtype)).view_as(logits)
    return logits + 3e-2 * logits.nan_to_num(neginf=0.0).abs().amax(-1, keepdim=True) * pattern


def depth_five(logits: Tensor, start: int) -> Tensor:
    """Blocks of five drafts have two rows exchanged; other depths are clean."""
    return logits[:, [0, 1, 3, 2, 4, 5]] if start and logits.shape[1] == 6 else logits


def single_token_decode(logits: Tensor, start: int) -> Tensor:
    """The block is read as a single token: every row gets the logits of the first."""
    return logits[:, :1].expand_as(logits) if start else logits


def collapsed(logits: Tensor, start: int) -> Tensor:
    """The logits of a block of two collapse to nearly uniform."""
    return logits * 1e-3 if start and logits.shape[1] == 2 else logits


def deep_blocks_spill(logits: Tensor, start: int) -> Tensor:
    """From the sixth token of a block on the rows are those of the page before."""
    return torch.cat([logits[:, :6], logits[:, : logits.shape[1] - 6]], 1) if start else logits


def best_of_a_block(self: Processors, scores: Tensor) -> Tensor:
    """The arg max of a greedy row is looked for in the first 256 tokens (one block of the reduction)."""
    laws = law(self, scores)
    if self._all_greedy and scores.shape[-1] > 256:
        best = scores[..., :256].argmax(-1, keepdim=True)
        return torch.zeros_like(laws).scatter(-1, best, 1.0)
    return laws


def target_in_bfloat16(self: Processors, scores: Tensor) -> Tensor:
    """Laws are kept in bfloat16 while float64 is claimed."""
    return law(self, scores).bfloat16().to(scores.dtype)


def cumulative_in_float16(probs: Tensor, uniform: Tensor) -> Tensor:
    """The final token is drawn by a cumulative sum in float16."""
    return draw(probs.double().cumsum(-1).half().double().diff(dim=-1, prepend=torch.zeros(len(probs), 1)), uniform)


def num(row: str, source: str, mechanism: str, patch: str, value: Any, check: str = GREEDY, **fields: Any) -> Mutant:
    """A bug of this family."""
    given: dict[str, Any] = {"properties": (*LAW, "greedy identity", "rollback", "processors inside a block"), **fields}
    patches = {f"dspark.{patch}": value}
    return Mutant(id=row, family="NUM", source=source, mechanism=mechanism, patches=patches, check=check, **given)


READ = "causal_model.CausalModel.read"
MUTANTS = (
    num(
        "NUM-4",
        "https://github.com/Tylogi/TyloQuant/pull/6",
        "forwards of 2 to 6 tokens are off by 3e-2, which looks like the noise of another kernel",
        READ,
        reading_of(narrow_kernel),
    ),
    num(
        "NUM-7",
        "https://github.com/vllm-project/vllm-ascend/pull/15118",
        "a compiled arg max returns the best of its first block only",
        "sampling.Processors.law",
        best_of_a_block,
        "test_01_greedy.py::test_identity_on_tables[table-v513-peaked-seed104]",
    ),
    num(
        "NUM-8",
        "https://github.com/NVIDIA/TensorRT-LLM/issues/11300",
        "long blocks spill: rows from the sixth on are read from the page before",
        READ,
        reading_of(deep_blocks_spill),
        "test_01_greedy.py::test_identity_by_draft_length[7]",
    ),
    num(
        "NUM-9",
        "https://github.com/sgl-project/sglang/issues/33800",
        "a depth of five corrupts, 3, 4, 6 and 7 are clean",
        READ,
        reading_of(depth_five),
        "test_01_greedy.py::test_identity_on_trained_pair[5]",
        properties=("greedy identity", "sampled law of the trained pair", "greedy controls"),
    ),
    num(
        "NUM-10",
        "https://github.com/vllm-project/vllm/issues/45425",
        "verification is treated as single-token decoding: every row is the first one",
        READ,
        reading_of(single_token_decode),
    ),
    num(
        "NUM-13",
        "https://github.com/vllm-project/vllm-ascend/issues/15329",
        "the logits of a block of two collapse to nearly uniform",
        READ,
        reading_of(collapsed),
        EXACT,
    ),
    num(
        "NUM-a",
        "derived",
        "laws are kept in bfloat16 while float64 is claimed",
        "sampling.Processors.law",
        target_in_bfloat16,
        EXACT,
        properties=(*LAW, "exact law of processors"),
        diagnosis=("laws_rounded", "target_rounded"),
    ),
    num(
        "NUM-b",
        "derived",
        "the recovered and the bonus token are drawn by a cumulative sum in float16",
        "verification.draw",
        cumulative_in_float16,
        EXACT,
        properties=LAW,
    ),
)
