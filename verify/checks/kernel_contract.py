"""The rejection step where nothing is left to chance: one-hot rows, uniforms at the edges, inputs left alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from verify.checks.kernel_law import kept_contract
from verify.judge import ContractViolation, NotApplicable
from verify.kernel.block import Block, Kernel, run_kernel
from verify.kernel.edges import EDGES, Edge, fixed_uniforms
from verify.kernel.experiment import Experiment
from verify.results import Evidence, Finding, Verdict

MATCH = 0.7  # Share of the drafts that agree with a one-hot target.


def one_hot_block(
    *, num_rows: int, num_drafts: int, vocab_size: int, dtype: torch.dtype, device: torch.device, seed: int
) -> Block:
    """Rows of one-hot targets and ragged drafts, every row with tokens of its own; half of the drafts have a soft law."""
    generator = torch.Generator().manual_seed(seed)
    best = torch.randint(vocab_size, (num_rows, num_drafts + 1), generator=generator)  # [B, K + 1]
    other = torch.randint(vocab_size, (num_rows, num_drafts), generator=generator)
    agrees = torch.rand(num_rows, num_drafts, generator=generator) < MATCH
    tokens = torch.where(agrees, best[:, :-1], other)  # [B, K]
    lengths = torch.arange(num_rows) % (num_drafts + 1)
    drafted = torch.arange(num_drafts) < lengths[:, None]
    tokens = torch.where(drafted, tokens, 0)
    target_probs = torch.zeros(num_rows, num_drafts + 1, vocab_size, dtype=dtype)
    target_probs.scatter_(-1, best[..., None], 1)
    draft_probs = torch.zeros(num_rows, num_drafts, vocab_size, dtype=dtype)
    draft_probs.scatter_(-1, tokens[..., None], 1)
    # Half on the draft and half on another token (or all of it, where they are the same).
    beside = torch.randint(vocab_size, (num_rows, num_drafts), generator=generator)
    draft_probs[::2] *= 0.5
    draft_probs[::2].scatter_add_(-1, beside[::2, :, None], torch.full_like(beside[::2, :, None], 1, dtype=dtype) / 2)
    draft_probs *= drafted[..., None].to(dtype)
    return Block(
        draft_token_ids=tokens.to(device),
        draft_probs=draft_probs.to(device),
        target_probs=target_probs.to(device),
        draft_lengths=lengths.to(device),
    )


def judge_one_hot(kernel: Kernel, blocks: Sequence[Block]) -> Finding:
    """On one-hot targets the answer is certain: drafts up to the first that differs, then the target's token.

    Every row has laws of its own, so a row read for another, or at another position, shows at once.
    """
    checked = 0
    for block in blocks:
        emission = kept_contract(lambda block=block: run_kernel(kernel, block))  # type: ignore[misc]
        best = block.target_probs.argmax(-1).cpu().numpy()  # [B, K + 1]
        drafts = block.draft_token_ids.cpu().numpy()
        lengths = block.draft_lengths.cpu().numpy()
        stands = (drafts == best[:, :-1]) & (np.arange(drafts.shape[1])[None, :] < lengths[:, None])
        count = np.cumprod(stands, axis=1).sum(1)  # [B]
        expected = np.where(np.arange(best.shape[1])[None, :] <= count[:, None], best, -1)
        wrong = (expected != emission.token_ids).any(1)
        if wrong.any():
            row = int(np.argmax(wrong))
            return Finding(
                verdict=Verdict.FAIL,
                evidence=Evidence.GREEDY,
                reason=f"row {row} of {len(best)} emitted {_row(emission.token_ids[row])} where only {_row(expected[row])} has "
                f"probability above 0 ({int(wrong.sum())} rows are wrong)",
                observations=checked + len(best),
                unit="rows",
                diagnosis=_whose(emission.token_ids[row], expected, row),
                details={"draft_token_ids": drafts[row].tolist(), "draft_length": int(lengths[row])},
            )
        checked += len(best)
    return Finding(
        verdict=Verdict.PASS,
        evidence=Evidence.GREEDY,
        reason=f"{checked} rows with one-hot targets give the only possible block",
        observations=checked,
        unit="rows",
        smallest_visible=1.0,
        smallest_visible_unit="wrong row",
    )


def judge_edges(kernel: Kernel, experiments: Sequence[Experiment]) -> Finding:
    """With every uniform at an edge of [0, 1) no token of target probability 0 is emitted."""
    fixed = rows = 0
    for edge in EDGES:
        for experiment in experiments:
            with fixed_uniforms(edge) as draws:
                block = experiment.draw()
                emission = kept_contract(lambda block=block: run_kernel(kernel, block))  # type: ignore[misc]
            fixed += draws.count
            emitted = emission.token_ids
            laws = experiment.block.target_probs.double().cpu().numpy()
            chances = np.take_along_axis(laws, np.maximum(emitted, 0)[..., None], -1)[..., 0]  # [B, K + 1]
            impossible = (emitted >= 0) & (chances <= 0)
            if impossible.any():
                row, place = (int(each) for each in np.unravel_index(int(np.argmax(impossible)), impossible.shape))
                return _at_the_edge(edge, emission.token_ids[row], place, int(emission.num_accepted[row]), rows)
            rows += len(emitted)
    if not fixed:
        raise NotApplicable("the step draws no uniform that the suite can see, so none can be put at an edge")
    return Finding(
        verdict=Verdict.PASS,
        evidence=Evidence.CONTRACT,
        reason=f"{rows} rows with uniforms at {', '.join(EDGES)} emitted nothing of target probability 0",
        observations=rows,
        unit="rows",
        smallest_visible=1.0,
        smallest_visible_unit="impossible token",
    )


def judge_inputs(kernel: Kernel, blocks: Sequence[Block]) -> Finding:
    """The arguments hold the same values after the call."""
    for block in blocks:
        before = block.copy()
        kept_contract(lambda block=block: run_kernel(kernel, block))  # type: ignore[misc]
        for name in ("draft_token_ids", "draft_probs", "target_probs", "draft_lengths"):
            old, new = getattr(before, name), getattr(block, name)
            if old is not None and not _same(old, new):
                raise ContractViolation(f"{name} was written to; callers reuse it: work on a copy.")
    return Finding(
        verdict=Verdict.PASS,
        evidence=Evidence.CONTRACT,
        reason="no argument was written to",
        observations=len(blocks),
        unit="calls",
        smallest_visible=1.0,
        smallest_visible_unit="changed value",
    )


def _at_the_edge(edge: Edge, token_ids: Any, place: int, num_accepted: int, rows: int) -> Finding:
    accepted = place < num_accepted
    return Finding(
        verdict=Verdict.FAIL,
        evidence=Evidence.CONTRACT,
        reason=f"with every uniform at {edge}, token {token_ids[place]} of target probability 0 was "
        f"{'accepted' if accepted else 'drawn'} at position {place}",
        observations=rows + 1,
        unit="rows",
        diagnosis="the acceptance test compares with `<=`: a uniform of 0 accepts the ratio 0 (ACC-3)"
        if accepted
        else "the draw takes the first or last entry of the cumulative law whatever its probability (RES, VOCAB)",
    )


def _same(old: Tensor, new: Tensor) -> bool:
    if old.shape != new.shape or old.dtype != new.dtype:
        return False
    return (
        torch.equal(old.nan_to_num(nan=-1.0), new.nan_to_num(nan=-1.0))
        if old.is_floating_point()
        else torch.equal(old, new)
    )


def _row(token_ids: Any) -> list[int]:
    return [int(each) for each in token_ids if each >= 0]


def _whose(emitted: Any, expected: Any, row: int) -> str:
    same = np.flatnonzero((expected == emitted).all(1))
    if same.size:
        return f"it is the answer of row {int(same[0])}: rows are mixed (BATCH)"
    return "a row or a position is read for another, or the accepted prefix is not the longest one (ACC, BON, BATCH)"
