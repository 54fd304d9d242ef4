"""Planted bugs of structured output: the automaton's state inside and behind a block (GRAM)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dspark.grammar import possible_tokens
from dspark.row import Row
from dspark.sampling import Processors
from tests.mutants.mutant import Mutant

ungrammatical = Processors._ungrammatical
emit = Row.emit


def only_the_first_row(self: Processors, outputs: Any, drafts: Tensor, start: int, num_rows: int) -> Tensor:
    """Drafts behind the block's first token are not checked."""
    banned = ungrammatical(self, outputs, drafts, start, num_rows)
    banned[:, 1:] = False
    return banned


def block_not_masked(self: Processors, outputs: Any, drafts: Tensor, start: int, num_rows: int) -> Tensor:
    """The rows of a block with drafts are not masked at all; single rows, the drafter's too, are."""
    banned = ungrammatical(self, outputs, drafts, start, num_rows)
    return banned if num_rows == 1 else torch.zeros_like(banned)


def one_token_behind(self: Processors, outputs: Sequence[Any], *arguments: Any) -> Tensor:
    """The newest token of the output was not fed to the automaton."""
    return ungrammatical(self, [output[:-1] for output in outputs], *arguments)


def remember_rejected(self: Processors, outputs: Sequence[Any], drafts: Tensor, start: int, num_rows: int) -> Tensor:
    """The automaton has advanced over the last block's drafts and is not rolled back: what it says is of a longer text."""
    stale = self.__dict__.get("advanced", [[]] * len(outputs))
    if num_rows > 1:
        self.__dict__["advanced"] = drafts.tolist()
    ahead = (
        [[*output, *own] for output, own in zip(outputs, stale, strict=True)] if len(stale) == len(outputs) else outputs
    )
    return ungrammatical(self, ahead, drafts, start, num_rows)


def drafts_unmasked(self: Processors, outputs: Any, drafts: Tensor, start: int, num_rows: int) -> Tensor:
    """The drafter knows no grammar; a draft that violates it is fed to the matcher, which raises."""
    if num_rows == 1:
        return torch.zeros(len(outputs), 1, self.vocab_size, dtype=torch.bool)
    for request, output, own in zip(self.requests, outputs, drafts.tolist(), strict=True):
        for place, token_id in enumerate(own):
            possible = possible_tokens(request, [*output, *own[:place]], start=len(output) + place)[0]
            if possible is not None and token_id not in possible:
                raise ValueError(f"the matcher does not accept token {token_id}")
    return ungrammatical(self, outputs, drafts, start, num_rows)


def mask_after_the_end(self: Processors, outputs: Any, drafts: Tensor, start: int, num_rows: int) -> Tensor:
    """The mask is filled before it is asked whether the matcher has ended: a draft behind a stop token raises."""
    for request, own in zip(self.requests, drafts[:, : start + num_rows - 1].tolist(), strict=True):
        if request.sampling.grammar is not None and any(token_id in request.stop_token_ids for token_id in own[:-1]):
            raise RuntimeError("the matcher has terminated")
    return ungrammatical(self, outputs, drafts, start, num_rows)


def end_not_checked(self: Row, *arguments: Any, **keywords: Any) -> list[int]:
    """Where a grammar decides about the end nobody looks for the stop token."""
    request = self.request
    if request.sampling.grammar is not None:
        self.request = replace(request, stop_token_ids=())
    try:
        return emit(self, *arguments, **keywords)
    finally:
        self.request = request


def gram(row: str, source: str, mechanism: str, value: Any, **fields: Any) -> Mutant:
    """One bug; by default it stands for the mask of the grammars."""
    given: dict[str, Any] = {
        "patches": {"dspark.sampling.Processors._ungrammatical": value},
        "check": HISTORY,
        "properties": ("processors inside a block", "grammar"),
        **fields,
    }
    return Mutant(id=row, family="GRAM", source=source, mechanism=mechanism, **given)


HISTORY = "test_04_processors.py::test_history_inside_a_block[grammar]"
OUTPUTS = "test_04_processors.py::test_outputs_obey_the_grammar"
VLLM = "https://github.com/vllm-project/vllm"
MUTANTS = (
    gram(
        "GRAM-1",
        f"{VLLM}/pull/36138",
        "drafts behind a marker inside the block are not checked by the grammar",
        only_the_first_row,
    ),
    gram(
        "GRAM-2",
        f"{VLLM}/pull/48516",
        "the newest token was not fed to the grammar: the mask repeats itself",
        one_token_behind,
    ),
    gram("GRAM-3", f"{VLLM}/issues/54437", "the rows of a block are not masked", block_not_masked),
    gram(
        "GRAM-4",
        "https://github.com/openvinotoolkit/openvino.genai/issues/4081",
        "the mask is filled before it is asked whether the grammar has ended: a draft behind a stop token raises",
        mask_after_the_end,
        check=OUTPUTS,
    ),
    gram(
        "GRAM-5",
        f"{VLLM}/issues/9423",
        "the automaton advances on drafts and is not rolled back",
        remember_rejected,
    ),
    gram(
        "GRAM-6",
        f"{VLLM}/issues/15554",
        "drafts that violate the grammar are fed to the matcher: the request fails",
        drafts_unmasked,
    ),
    gram(
        "STOP-14",
        "https://github.com/sgl-project/sglang/pull/21723",
        "a finish by the grammar is not checked where blocks are verified: the output never stops",
        None,
        patches={"dspark.row.Row.emit": end_not_checked},
    ),
)
