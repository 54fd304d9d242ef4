"""Drafts that no honest model gives: corrupt logits, and another vocabulary."""

from dataclasses import replace

import torch

from verify.cases import case
from verify.checks.exact_law import judge_exact_law
from verify.judge import ContractViolation, Judge
from verify.models.pairs import TableSpec, draft_probs_of, table_pair, target_probs_of
from verify.models.table import TableLM
from verify.protocol import ModelPair
from verify.results import Evidence, Finding, Verdict
from verify.subject import Subject

CASE = case("damaged draft", vocab_size=3, num_draft_tokens=1, max_new_tokens=3, seed=903)


def _pair(judge: Judge, spec: TableSpec, name: str) -> ModelPair:
    pair = table_pair(
        spec, device=torch.device(judge.options.device), dtype=torch.float64, folder=judge.options.report_dir / "models"
    )
    return replace(pair, name=f"{pair.name}-{name}")


def judge_corrupt_draft(judge: Judge, spec: TableSpec, value: float) -> Finding:
    """A quarter of the draft's rows hold `value` at one token; the exact law must stand, or the decoder must raise."""
    pair = _pair(judge, spec, f"draft-{value}")
    honest = judge_exact_law(Subject(judge, pair), replace(CASE, spec=spec))
    if honest.verdict is not Verdict.PASS:  # a decoder that fails or raises anyway has refused nothing
        return honest
    table = next(iter(pair.draft.parameters()))  # [num_rows, V]
    with torch.no_grad():
        table[::4, 1] = value
    subject = Subject(judge, pair)
    try:
        return judge_exact_law(subject, replace(CASE, spec=spec))
    except ContractViolation as violation:
        if not str(violation).startswith("generate raised"):
            raise
        return Finding(
            verdict=Verdict.PASS,
            evidence=Evidence.EXACT,
            reason=f"refused: {violation}",
            observations=1,
            unit="refusals",
            details=violation.details,
        )


def judge_vocabularies(judge: Judge, spec: TableSpec, extra: int) -> Finding:
    """The draft has `extra` tokens more (or fewer) than the target; the exact law must stand."""
    pair = _pair(judge, spec, f"draft-vocab{extra:+d}")
    probs = draft_probs_of(spec, target_probs_of(spec))
    probs = torch.cat([probs, torch.full((len(probs), extra), 0.2)], 1) if extra > 0 else probs[:, :extra]
    draft = TableLM.from_probs(
        (probs / probs.sum(-1, keepdim=True)).to(torch.float64),
        history=spec.history,
        window=spec.window,
        dtype=torch.float64,
        max_position_embeddings=spec.max_positions,
    )
    torch.nn.Module.to(draft, pair.device)
    pair = replace(pair, draft=draft)
    return judge_exact_law(Subject(judge, pair), replace(CASE, spec=spec))
