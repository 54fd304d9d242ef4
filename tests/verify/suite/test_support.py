"""What the chapters share."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from verify.models.compat import forward_logits
from verify.models.observer import Round
from verify.options import Options
from verify.suite.support import FIXTURES, answered_until, load_trained_pair


class Subject:
    """Rejects in every round until the n-th answer, which accepts; where `blind`, nothing is seen."""

    def __init__(self, *, accepts_at: int, blind: bool = False) -> None:
        self.judge = SimpleNamespace(progress=lambda *_: None)
        self.accepts_at = accepts_at
        self.blind = blind
        self.asked = 0

    def generate_one(self, request: Any) -> Any:
        self.asked += 1
        accepted = 2 if self.asked >= self.accepts_at else 0
        rounds = None if self.blind else [Round(0, 2, accepted), Round(3, 0, 0)]
        return SimpleNamespace(rounds=rounds, generation=SimpleNamespace(record=None))


@pytest.mark.parametrize(
    ("subject", "asked"),
    [
        (Subject(accepts_at=1), 3),  # reached at once: the usual number
        (Subject(accepts_at=5), 5),  # goes on until it is reached
        (Subject(accepts_at=99), 9),  # gives up with the requests
        (Subject(accepts_at=1, blind=True), 3),  # more cannot help where no round is seen
    ],
)
def test_further_requests_only_while_a_path_is_missing(subject: Any, asked: int) -> None:
    answers, coverage = answered_until(subject, [None] * 9, required=("fully accepted",), at_least=3)
    assert subject.asked == len(answers) == asked
    assert bool(coverage.missing(("fully accepted",))) == (subject.blind or asked == 9)


def test_a_target_alone_has_a_draft_that_is_often_right(tmp_path: Path) -> None:
    target = FIXTURES / "draft"  # the smaller one
    pair = load_trained_pair(Options(target=target, report_dir=tmp_path))
    text = torch.arange(48)[None]
    same = forward_logits(pair.draft, text).argmax(-1) == forward_logits(pair.target, text).argmax(-1)
    assert 0.3 < same.double().mean() < 0.95
    assert not any(weight.is_inference() for weight in pair.draft.parameters())
    assert (pair.draft_dir / "config.json").is_file()
    assert pair.draft_dir != target
    assert pair.target_dir == target
    for more in ({"draft": target}, {"door": "engine"}, {"door": "generations"}):
        pair = load_trained_pair(Options(target=target, report_dir=tmp_path, **more))
        assert torch.equal(forward_logits(pair.draft, text), forward_logits(pair.target, text))
