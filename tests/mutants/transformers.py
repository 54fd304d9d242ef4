"""Planted bugs in transformers' own assisted generation, judged through the suite's adapter for it."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache
from transformers.generation.candidate_generator import AssistedCandidateGenerator
from transformers.generation.utils import _speculative_sampling

from tests.mutants.acceptance import LAW
from tests.mutants.cache import STATE
from tests.mutants.mutant import EXACT, Mutant
from verify.adapters.transformers import make_decoder

prepare = AssistedCandidateGenerator._prepare_generation_args
crop = DynamicCache.crop


def greedy_assistant(self: AssistedCandidateGenerator, *arguments: Any) -> dict[str, Any]:
    """The assistant never samples, and its scores are still taken for the law of its tokens."""
    given = prepare(self, *arguments)
    given["generation_config"].do_sample = False
    return given


def softmax_of_excess(*arguments: Any, **keywords: Any) -> tuple[Tensor, Tensor]:
    """The token after a rejection is drawn from softmax(clamp(target - draft))."""
    tokens, num_accepted = _speculative_sampling(*arguments, **keywords)
    candidate_logits, new_logits = arguments[1], arguments[3]
    if int(num_accepted) < candidate_logits.shape[1] and tokens.shape[1] == int(num_accepted) + 1:
        target, draft = (each[:, int(num_accepted)].softmax(-1) for each in (new_logits, candidate_logits))
        tokens[:, -1] = torch.multinomial((target - draft).clamp(min=0).softmax(-1), 1)[:, 0]
    return tokens, num_accepted


def ensemble(*arguments: Any, **keywords: Any) -> tuple[Tensor, Tensor]:
    """Drafts are verified with 0.7 target + 0.3 draft, a documented option (DIVERSE), as if it were lossless."""
    return _speculative_sampling(*arguments, **{**keywords, "assistant_ensemble_weight": 0.7})


def one_kept_too_many(self: DynamicCache, num_tokens: int) -> None:
    """One rejected token stays in the cache."""
    crop(self, min(0, num_tokens + 1))


def bug(row: str, source: str, mechanism: str, patches: dict[str, Any], *diagnosis: str, **fields: Any) -> Mutant:
    """One bug in transformers."""
    full = {f"transformers.{name}": value for name, value in patches.items()}
    given: dict[str, Any] = {
        "family": row.split("-")[0],
        "check": EXACT,
        "properties": LAW,
        "make": make_decoder,
        **fields,
    }
    return Mutant(id=row, source=source, mechanism=mechanism, patches=full, diagnosis=diagnosis, **given)


RULE = "generation.utils._speculative_sampling"
HUGGING_FACE = "https://github.com/huggingface/transformers"
MUTANTS = (
    bug(
        "QMIS-2",
        f"{HUGGING_FACE}/issues/32867",
        "the assistant is forced to be greedy, and its soft probabilities are used in the ratio",
        {"generation.candidate_generator.AssistedCandidateGenerator._prepare_generation_args": greedy_assistant},
        "greedy_draft_as_soft",
    ),
    bug(
        "RES-1b",
        f"{HUGGING_FACE}/pull/28508",
        "transformers: residual = softmax(clamp(target - draft, 0))",
        {RULE: softmax_of_excess},
        "residual_softmax",
        "support_violation",
    ),
    bug(
        "LOSSY-a",
        "derived",
        "transformers: static ensemble verification, an option that trades the law for acceptance",
        {RULE: ensemble},
        "ensemble",
    ),
    bug(
        "KV-15d",
        "derived",
        "transformers: a crop removes one token too few",
        {"cache_utils.DynamicCache.crop": one_kept_too_many},
        check="test_06_state.py::test_rollback[4]",
        properties=STATE,
    ),
)
