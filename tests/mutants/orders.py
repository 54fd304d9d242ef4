"""Planted bugs of the order of processors (LOGP)."""

from typing import Any
from unittest import mock

from torch import Tensor

from dspark.sampling import Processors
from tests.mutants.draft_laws import PROCESSED
from tests.mutants.mutant import Mutant

truncated = Processors._truncated
penalised = Processors._penalised


def truncated_backwards(self: Processors, scores: Tensor) -> Tensor:
    """Min-p first, then top-p, then top-k."""
    for name in ("_min_p", "_top_p", "_top_k"):
        alone = {each: getattr(self, each) if each == name else None for each in ("_min_p", "_top_p", "_top_k")}
        with mock.patch.multiple(self, **alone):
            scores = truncated(self, scores)
    return scores


def temperature_last(self: Processors, scores: Tensor) -> Tensor:
    """The scores are truncated first, and what is left is divided by the temperature."""
    kept = self._truncated(scores)
    return (kept if self._temperature is None else kept / self._temperature).softmax(-1)


def bias_after_penalties(self: Processors, logits: Tensor, *arguments: Any) -> Tensor:
    """The bias is added to the penalised logits."""
    with mock.patch.object(self, "_bias", None):
        scores = penalised(self, logits, *arguments)
    return scores if self._bias is None else scores + self._bias


def order(row: str, mechanism: str, method: str, value: Any, case: str) -> Mutant:
    """A wrong order, seen where each processor moves what the next one finds."""
    return Mutant(
        id=row,
        family="LOGP",
        source="derived",
        mechanism=mechanism,
        patches={f"dspark.sampling.Processors.{method}": value},
        check=f"test_02_exact_law.py::test_processors[{case}]",
        properties=PROCESSED,
    )


MUTANTS = (
    order(
        "LOGP-b",
        "top-k, top-p and min-p are applied in reverse order",
        "_truncated",
        truncated_backwards,
        "temperature, top_k and top_p",
    ),
    order(
        "LOGP-c",
        "the temperature is applied after top-k, top-p and min-p",
        "sampled_law",
        temperature_last,
        "temperature, top_p and min_p",
    ),
    order(
        "LOGP-d",
        "the bias is added after the repetition penalty",
        "_penalised",
        bias_after_penalties,
        "logit bias, repetition penalty and temperature",
    ),
)
