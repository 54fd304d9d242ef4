"""The simulated decoders are lossless, and with a leak they are not."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import chi2

from tests.measurements.ledger import read_lines, resume
from tests.measurements.world import DECODERS, World
from verify.models.pairs import Relation, TableSpec

SPEC = TableSpec(vocab_size=5, relation=Relation.UNRELATED, seed=3, num_rows=3, zeros=0.3)


def p_value(world: World) -> float:
    """Pearson's test of the emitted tokens of every row against the reference."""
    decoded = world.decode(np.random.default_rng(0), num_runs=500, num_tokens=60)
    cells = decoded.rows * 5 + decoded.token_ids
    seen = np.bincount(cells.ravel(), minlength=15).reshape(3, 5)
    expected = world.target * seen.sum(axis=1, keepdims=True)
    possible = expected > 0
    assert not seen[~possible].any() or world.leak
    statistic = ((seen - expected)[possible] ** 2 / expected[possible]).sum()
    return float(chi2.sf(statistic, int(possible.sum()) - 3))


@pytest.mark.parametrize("decoder", DECODERS)
def test_tokens_follow_the_target_and_with_a_leak_they_do_not(decoder: str) -> None:
    assert p_value(World(SPEC, decoder)) > 1e-4
    assert p_value(World(SPEC, decoder, leak=0.2)) < 1e-9


def test_offsets_are_those_of_rounds() -> None:
    decoded = World(SPEC).decode(np.random.default_rng(0), num_runs=50, num_tokens=40)
    steps = decoded.offsets[:, 1:] - decoded.offsets[:, :-1]
    assert set(np.unique(decoded.offsets)) == {0, 1, 2, 3}
    assert ((steps == 1) | (decoded.offsets[:, 1:] == 0)).all()
    assert [piece.num_tokens for piece in decoded.evidence()] == [40] * 50


def test_unknown_decoders_are_refused() -> None:
    with pytest.raises(ValueError, match="must be one of standard"):
        World(SPEC, "typical")


def test_an_interrupted_measurement_goes_on(tmp_path: Path) -> None:
    path, calls = tmp_path / "ledger.jsonl", []

    def work(job: dict[str, Any]) -> dict[str, Any]:
        calls.append(job["seed"])
        return {"square": job["seed"] ** 2}

    resume(path, [{"seed": seed} for seed in (1, 2)], work, label="first")
    path.write_text(path.read_text() + '{"job": {"seed": 3}, "squ')  # killed while writing
    entries = resume(path, [{"seed": seed} for seed in (1, 2, 3)], work, label="second")
    assert calls == [1, 2, 3]
    assert [entry["square"] for entry in entries] == [1, 4, 9]
    assert len(read_lines(path)) == 3
    assert json.loads(path.read_text().splitlines()[-1])["square"] == 9
