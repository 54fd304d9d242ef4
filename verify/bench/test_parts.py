"""The small parts, timed by pytest-benchmark: forwards of the target and of the draft model after a context."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from verify.bench.race import Race
from verify.bench.schema import Part
from verify.models.compat import forward_logits, new_cache

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed; it times the small parts")
CONTEXT = 128


@pytest.mark.parametrize("part", ["target, 1 position", "target, a block", "draft, 1 position"])
def test_forward(race: Race, benchmark: Any, part: str) -> None:
    """One forward after a context of 128 tokens; a block is the anchor and its drafts."""
    who, _, what = part.partition(", ")
    model: PreTrainedModel = getattr(race.models, who)
    width = 1 + race.decoder.num_draft_tokens if what == "a block" else 1
    context = torch.zeros(1, CONTEXT, dtype=torch.long, device=race.models.device)

    def fresh() -> tuple[tuple[Any], dict[str, Any]]:
        cache = new_cache(model)
        forward_logits(model, context, cache=cache)
        race.clock.now()
        return (cache,), {}

    def forward(cache: Any) -> None:
        forward_logits(model, context[:, :width], cache=cache)
        race.clock.now()

    benchmark.pedantic(forward, setup=fresh, rounds=15, warmup_rounds=2)
    if benchmark.stats is not None:
        stats = benchmark.stats.stats
        race.keep_part(part, Part(median=stats.median, interquartile_range=stats.iqr, rounds=stats.rounds))
