"""Bets beside `Wealth`: fair where nothing is wrong, and the measurement says so where one is not."""

import numpy as np
import pytest

from tests.measurements.false_alarms import ALPHAS, exceeds
from tests.measurements.other_bets import OTHER_BETS, acceptance, crossings_of, page


@pytest.mark.parametrize(
    "name", [name for name in OTHER_BETS if name != "acceptance is 1 - TV"]
)  # that one has its own test
def test_a_bet_stays_below_alpha(name: str) -> None:
    crossed = crossings_of(name, seed=[0], runs=40)["crossed"]
    assert not any(exceeds(crossed[str(alpha)], 40, alpha) for alpha in ALPHAS)


def test_the_page_names_a_bet_above_alpha() -> None:
    # The rounds that this suite once left out: the last of each answer.
    peaks = [acceptance(np.random.default_rng(seed), lambda rounds, _: rounds[:-1]) for seed in range(40)]
    wrong = {str(alpha): sum(peak >= -np.log(alpha) for peak in peaks) for alpha in ALPHAS}
    right = dict.fromkeys(map(str, ALPHAS), 0)
    text = page({"command": "x", "runs": 40, "crossed": {"right": right, "wrong": wrong}})
    assert {line.split(" | ")[0] for line in text.splitlines() if "**yes**" in line} == {"| wrong"}
