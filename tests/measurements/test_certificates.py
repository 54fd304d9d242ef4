"""Coverage is counted rightly: honest bounds pass, halved ones are seen, and so is a promise that is half as large."""

import numpy as np
import pytest

from tests.measurements import certificates
from tests.measurements.certificates import (
    DELTA,
    SUITE_DELTA,
    Counted,
    distance_coverage,
    falls_short,
    leak_coverage,
    mistakes,
    visibility,
)

KNOWN = mistakes((0.0, 0.2))
LEAKY = next(
    each
    for each in KNOWN.values()
    if each.hypothesis.label == "draft_leak" and each.leak == 0.2 and each.world.temperature != 1
)


def test_honest_bounds_cover_and_are_not_void() -> None:
    entry = leak_coverage(LEAKY, runs=25, seed=[0])
    assert not falls_short(entry["covered"]["alone"], 25, 1 - DELTA)
    assert not falls_short(entry["covered"]["together, as the suite"], 25, 1 - SUITE_DELTA)
    widths = {name: float(np.median(bounds)) for name, bounds in entry["bounds"].items()}
    assert 0.2 < widths["alone"] < widths["alone, as the suite"] <= widths["together, as the suite"] < 0.8


def test_halved_bounds_are_seen_to_fall_short(monkeypatch: pytest.MonkeyPatch) -> None:
    add = Counted.add
    monkeypatch.setattr(Counted, "add", lambda self, name, bound, truth: add(self, name, bound / 2, truth))
    entry = leak_coverage(LEAKY, runs=10, seed=[0])
    assert falls_short(entry["covered"]["alone"], 10, 1 - DELTA)
    entry = distance_coverage({"vocab_size": 3, "leak": 1.0, "runs": 200, "seed": 0})
    assert falls_short(entry["covered"]["distance"], 200, 1 - DELTA)


def test_the_distance_at_one_context_is_covered() -> None:
    entry = distance_coverage({"vocab_size": 3, "leak": 1.0, "runs": 200, "seed": 0})
    assert not falls_short(entry["covered"]["distance"], 200, 1 - DELTA)
    assert float(np.median(entry["bounds"]["distance"])) < 1


def test_the_printed_error_is_seen_and_a_half_and_a_quarter_of_it_are_not() -> None:
    name = next(
        name
        for name, each in KNOWN.items()
        if each.hypothesis.label == "draft_leak" and each.world.spec.vocab_size == 64
    )
    job = {
        "mistake": name.replace("leak 0.2", "leak 0"),
        "tokens": 512,
        "parts": [1.0, 0.5, 0.25],
        "repetitions": 24,
        "seed": 0,
    }
    found = visibility(job)
    assert found["rejected"]["1.0"] >= 23
    # Had the suite printed half or a quarter of it, the promise of 95% would have been broken.
    assert falls_short(found["rejected"]["0.5"], 24, 0.95)
    assert falls_short(found["rejected"]["0.25"], 24, 0.95)
    assert found["rejected"]["0.25"] <= found["rejected"]["0.5"]


def test_too_few_tokens_promise_nothing() -> None:
    name = next(iter(certificates.mistakes([0.0])))
    assert visibility({"mistake": name, "tokens": 10, "parts": [1.0], "repetitions": 1, "seed": 0}) == {"leak": None}
