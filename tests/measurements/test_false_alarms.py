"""The false-alarm measurement passes the engine and exposes payoffs that are no martingales."""

from pathlib import Path

import numpy as np
import pytest

from tests.measurements.false_alarms import ALPHAS, WORLDS, Null, crossings, exceeds, nulls, page, summary, total
from tests.measurements.pictures import Bar, draw_rates
from verify.betting import laws
from verify.betting.evidence import TokenEvidence
from verify.betting.hypotheses import Hypothesis
from verify.betting.library import library
from verify.betting.wealth import Wealth

UNNORMALISED = Hypothesis(
    name="sums to 1.1", family="X", explanation="", formula=lambda rows: 1.1 * rows.target, needs=(), place="any"
)
NEXT_ROW = Hypothesis(
    name="next_row",
    family="POS",
    explanation="",
    formula=laws.alternative("next_row"),
    needs=("next_row",),
    place="any",
)


def test_the_engine_stays_below_alpha() -> None:
    null = Null(world=WORLDS[0])
    added = total([crossings(null, seed=[0, index], runs=40, num_tokens=60) for index in range(2)])
    assert added["runs"] == 80
    assert not any(
        exceeds(added[account][str(alpha)], 80, alpha) for account in ("blind", "informed") for alpha in ALPHAS
    )
    (rate, _) = summary("kind", 0.0, added, informed=True)["rates"]
    assert not rate["above_alpha"]
    assert not rate["bettors_above_alpha"]


def test_an_engine_with_a_law_that_is_none_exceeds_alpha() -> None:
    added = crossings(
        Null(world=WORLDS[0]), seed=[0], runs=40, num_tokens=120, hypotheses=[*library()[:4], UNNORMALISED]
    )
    assert all(exceeds(added["blind"][str(alpha)], 40, alpha) for alpha in ALPHAS)
    (rate, _) = summary("kind", 0.0, added, informed=True)["rates"]
    assert rate["above_alpha"] == ["blind", "informed"]
    assert any("sums to 1.1" in label for label in rate["bettors_above_alpha"])


def repeating_run(rng: np.random.Generator, num_tokens: int) -> TokenEvidence:
    """A lossless decoder of a target that likes to repeat its last token, and the row one position later beside each token."""
    table = np.full((8, 8), 0.4 / 8) + 0.6 * np.eye(8)
    tokens = [0]
    while len(tokens) < num_tokens + 2:
        tokens.append(int(rng.choice(8, p=table[tokens[-1]])))
    before = np.array(tokens[:-2])
    return TokenEvidence(
        target_probs=table[before], token_ids=tokens[1:-1], alternatives={"next_row": table[np.array(tokens[1:-1])]}
    )


def test_a_bet_on_the_row_after_the_token_exceeds_alpha() -> None:
    # The library had this bet: on a target that repeats itself it rejects every correct decoder.
    rng, crossed, crossed_without = np.random.default_rng(0), 0, 0
    for _ in range(40):
        evidence = repeating_run(rng, 60)
        for hypotheses in ([*library(), NEXT_ROW], library()):
            wealth = Wealth(hypotheses, alpha=0.05)
            wealth.update(evidence)
            crossed += wealth.rejected and NEXT_ROW in hypotheses
            crossed_without += wealth.rejected and NEXT_ROW not in hypotheses
    assert exceeds(crossed, 40, 0.05)
    assert not exceeds(crossed_without, 40, 0.05)


@pytest.mark.parametrize("null", nulls(0.4)[-2:], ids=lambda null: null.noise)
def test_rounding_within_the_floor_is_no_alarm(null: Null) -> None:
    added = crossings(null, seed=[0], runs=40, num_tokens=60)
    assert not exceeds(added["blind"]["0.05"], 40, 0.05)


def test_rounding_without_tolerance_is_an_alarm() -> None:
    careless = Null(world=WORLDS[0], noise="worst rounding", floor=0.4, tolerance=0.0)
    added = crossings(careless, seed=[0], runs=40, num_tokens=200)
    assert exceeds(added["blind"]["0.05"], 40, 0.05)


def test_the_page_names_what_is_above_alpha(tmp_path: Path) -> None:
    kinds = []
    for hypotheses in (None, [UNNORMALISED]):
        added = crossings(Null(world=WORLDS[0]), seed=[0], runs=20, num_tokens=120, hypotheses=hypotheses)
        kinds.append(summary(f"kind {len(kinds)}", 0.0, added, informed=True))
    rounding = {"floor": 0.1, "against_float32": 0.2, "standard_deviation": 0.01, "num_positions": 3}
    result = {"command": "x", "num_tokens": 60, "rounding": rounding}
    assert "No wealth is shown" in page({**result, "kinds": kinds[:1]})
    assert "Above alpha: ['kind 1', 'kind 1']" in page({**result, "kinds": kinds})
    draw_rates(tmp_path / "rates.svg", [Bar("one", 0.05, 0.0, 0.0, 0.1), Bar("one", 0.001, 0.002, 0.001, 0.01)])
    assert "<svg" in (tmp_path / "rates.svg").read_text()
