"""How often a round goes from the host to the device and back; on a CPU a crossing is a call that would be one."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from dspark.batch import Batch
from dspark.causal_model import CausalModel
from dspark.drafters.factory import random_drafter
from dspark.drafters.model import ModelDrafter
from dspark.drafters.ngram import NgramDrafter
from dspark.request import Request, SamplingParams
from dspark.row import Row
from dspark.scheduler.threshold import StaticThreshold
from dspark.verification import Verification

Tiny = Callable[..., PreTrainedModel]
TO_HOST = ("tolist", "item", "__bool__", "__int__", "__float__", "cpu", "numpy")
PROMPTS = ((1, 2, 3), (4,), (5, 6, 7, 8, 9, 10), (1, 2))


def names_a_device(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> bool:
    return any(isinstance(each, torch.device) for each in (*arguments, *keywords.values()))


def unequal(*, draft_lengths: Tensor, **_: Any) -> Verification:
    """Rows accept counts of their own, so that they grow apart; 0 follows."""
    return Verification(torch.arange(len(draft_lengths)).clamp(max=draft_lengths), torch.zeros_like(draft_lengths))


@contextmanager
def crossings() -> Iterator[Counter[str]]:
    """Counts `to device` (constructors from host values and moves, where a device is named) and `to host`."""
    found: Counter[str] = Counter()

    def counted(call: Any, direction: str, crosses: Callable[..., bool]) -> Any:
        def counting(*arguments: Any, **keywords: Any) -> Any:
            found[direction] += crosses(arguments, keywords)
            return call(*arguments, **keywords)

        return counting

    with pytest.MonkeyPatch.context() as patch:
        for name in ("tensor", "as_tensor"):
            patch.setattr(torch, name, counted(getattr(torch, name), "to device", names_a_device))
        patch.setattr(Tensor, "to", counted(Tensor.to, "to device", names_a_device))
        for name in TO_HOST:
            patch.setattr(Tensor, name, counted(getattr(Tensor, name), "to host", lambda *_: True))
        yield found


@pytest.mark.parametrize(
    ("drafter", "to_device", "to_host"),
    [
        ("none", 2, 1),  # uniforms and anchors; what was emitted
        ("ngram", 4, 1),  # and drafts, where the rows stand
        (
            "model",
            7,
            1,
        ),  # and text that the drafter lacks, its ends, where the drafter's rows stand, before it and behind it
        ("dspark", 5, 2),  # and anchors again, where the drafter's rows stand; confidences
    ],
)
@pytest.mark.parametrize("sampling", [SamplingParams(), SamplingParams(presence_penalty=0.5, repetition_penalty=1.2)])
def test_crossings_of_a_round(tiny: Tiny, drafter: str, to_device: int, to_host: int, sampling: SamplingParams) -> None:
    target = tiny("qwen3")
    drafters: dict[str, Any] = {
        "none": lambda: None,
        "ngram": NgramDrafter,
        "model": lambda: ModelDrafter(tiny("llama", seed=1)),
        "dspark": lambda: random_drafter(target, kind="dspark", dtype=torch.float64),
    }
    requests = [
        Request(prompt_token_ids=prompt, max_new_tokens=30, num_draft_tokens=3, seed=index, sampling=sampling)
        for index, prompt in enumerate(PROMPTS)
    ]
    batch = Batch(
        CausalModel.of(target),
        drafters[drafter](),
        [Row.of(each) for each in requests],
        scheduler=StaticThreshold(0.0) if drafter == "dspark" else None,
        verify=unequal,
    )
    if sampling.presence_penalty:
        to_device += 2  # new tokens of the text and of the output
    batch.advance()
    for _ in range(4):
        with crossings() as found:
            batch.advance()
        assert found["to device"] <= to_device
        assert found["to host"] <= to_host
    assert len(batch.rows) == len(PROMPTS)
    assert drafter == "none" or len({sum(row.accepted_per_step) for row in batch.rows}) > 1
