"""Calibration: the measures by hand, planted temperatures recovered, files, and the drafter that uses one."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import astuple
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike
from scipy.special import expit, logit
from transformers import PreTrainedModel

from dspark import Request, SpeculativeDecoder
from dspark.calibration import FILE, Calibration
from dspark.checkpoints import save_network, weights_sha256
from dspark.drafters.factory import load_drafter, random_drafter
from dspark.reliability import (
    Predictions,
    area_under_curve,
    calibration_error,
    conditional_acceptance,
    pooled,
    prefix_survival,
    reliability_diagram,
    reliability_table,
)
from dspark.rounds import RecordedRounds, Recorder
from dspark.temperature_scaling import TEMPERATURES, calibrated, fit_calibration

Tiny = Callable[..., PreTrainedModel]
NUM_ROUNDS = 20_000
PLANTED = (0.5, 0.6, 0.5, 2.0)  # what the confidences' logits were divided by
FIVE_STEPS = 0.15  # of the grid of temperatures, in logarithms


def rounds_with(distortion: Sequence[float], *, num_rounds: int = NUM_ROUNDS, seed: int = 0) -> RecordedRounds:
    """Acceptance by independent true probabilities; confidences are those, their logits divided by the distortion."""
    generator = np.random.default_rng(seed)
    shape = (num_rounds, len(distortion))
    probabilities = generator.beta(5, 1.5, shape)
    accepted = (generator.random(shape) < probabilities).cumprod(1).sum(1)
    return RecordedRounds(
        confidences=expit(logit(probabilities) / np.array(distortion)),
        accepted=accepted,
        lengths=np.full(num_rounds, len(distortion)),
        request_ids=np.arange(num_rounds),
    )


def predictions(predicted: ArrayLike, happened: ArrayLike) -> Predictions:
    return Predictions(np.array(predicted, dtype=float), np.array(happened, dtype=bool))


def noise(rounds: RecordedRounds) -> float:
    """Twice what noise alone gives the ECE at most in the mean."""
    return float(0.8 * np.sqrt(15 / len(rounds)))


def test_calibration_error_by_hand() -> None:
    given = predictions([0.1, 0.15, 0.9, 1.0], [0, 1, 1, 1])
    low, high = map(astuple, reliability_table(given, num_bins=5))
    assert low == pytest.approx((0, 0.2, 2, 0.125, 0.5))
    assert high == pytest.approx((0.8, 1, 2, 0.95, 1))
    assert calibration_error(given, num_bins=5) == pytest.approx((2 * 0.375 + 2 * 0.05) / 4)
    assert calibration_error(predictions([0.0, 1.0], [0, 1])) == 0
    assert calibration_error(predictions([0.0, 1.0], [1, 0])) == 1
    assert np.isnan(calibration_error(predictions([], [])))


def test_area_under_curve_is_the_share_of_pairs_in_order() -> None:
    generator = np.random.default_rng(0)
    values, happened = generator.integers(0, 6, 40) / 6, generator.integers(0, 2, 40)  # with ties
    pairs = list(product(values[happened == 1], values[happened == 0]))
    expected = sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs)
    assert area_under_curve(predictions(values, happened)) == pytest.approx(expected)
    assert area_under_curve(predictions(1 - values, happened)) == pytest.approx(1 - expected)
    assert np.isnan(area_under_curve(predictions([0.5], [1])))


def test_which_rounds_count() -> None:
    """Survival counts every round that drafted so far; conditional acceptance those that got there."""
    rounds = RecordedRounds(
        confidences=np.array([[0.5, 0.4], [0.8, 0.5], [0.9, np.nan]]),
        accepted=np.array([0, 1, 1]),
        lengths=np.array([2, 2, 1]),
        request_ids=np.zeros(3, dtype=np.int64),
    )
    survival, conditional = prefix_survival(rounds, 1), conditional_acceptance(rounds, 1)
    assert survival.predicted.tolist() == pytest.approx([0.2, 0.4])
    assert survival.happened.tolist() == [False, False]
    assert conditional.predicted.tolist() == pytest.approx([0.5])
    assert conditional.happened.tolist() == [False]
    assert prefix_survival(rounds, 0).happened.tolist() == [False, True, True]
    assert len(pooled(rounds).predicted) == 5


def test_planted_temperatures_are_recovered() -> None:
    fitting, fresh = rounds_with(PLANTED), rounds_with(PLANTED, seed=1)
    calibration = fit_calibration(fitting)
    expected = [1 / each for each in PLANTED]
    assert np.log(calibration.temperatures) == pytest.approx(np.log(expected), abs=FIVE_STEPS)
    corrected = calibrated(fresh, calibration)
    for position in range(len(PLANTED)):
        before, after = prefix_survival(fresh, position), prefix_survival(corrected, position)
        assert calibration_error(before) > 2 * noise(fresh)
        assert calibration_error(after) < noise(fresh)
        # A rising function of the one confidence: the order, and so the ranking power, stays.
        old, new = (conditional_acceptance(each, position) for each in (fresh, corrected))
        assert area_under_curve(new) == pytest.approx(area_under_curve(old), abs=1e-12)
        assert area_under_curve(new) > 0.6


def test_the_wrong_direction_is_seen() -> None:
    fresh = rounds_with(PLANTED, seed=1)
    wrong = calibrated(fresh, Calibration(PLANTED))
    assert calibration_error(pooled(wrong)) > calibration_error(pooled(fresh)) > 2 * noise(fresh)


def test_earlier_positions_are_in_place_when_later_ones_are_fitted() -> None:
    """One distorted position: with it corrected the next ones need nothing; by themselves they would compensate for it."""
    rounds = rounds_with((0.4, 1.0, 1.0), num_rounds=60_000)
    assert np.log(fit_calibration(rounds).temperatures) == pytest.approx(np.log([2.5, 1, 1]), abs=FIVE_STEPS)
    first, second, _ = rounds.confidences.T
    happened = rounds.accepted > 1

    def error(temperature: float) -> float:
        return calibration_error(Predictions(first * expit(logit(second) / temperature), happened))

    assert abs(np.log(min(TEMPERATURES, key=error))) > 2 * FIVE_STEPS


def test_what_is_calibrated_stays() -> None:
    rounds = rounds_with((1.0, 1.0, 1.0))
    calibration = fit_calibration(rounds)
    assert np.log(calibration.temperatures) == pytest.approx([0, 0, 0], abs=FIVE_STEPS)
    assert calibration_error(pooled(calibrated(rounds_with((1.0,) * 3, seed=1), calibration))) < noise(rounds)


def test_too_few_rounds_and_confidences_that_know_nothing() -> None:
    with pytest.raises(ValueError, match=r"299 rounds drafted position 1; 15 bins need at least 300\. Record more"):
        fit_calibration(rounds_with((1.0,), num_rounds=299))
    short = rounds_with((1.0, 1.0), num_rounds=400)
    short = RecordedRounds(
        confidences=short.confidences,
        accepted=np.minimum(short.accepted, 1),
        lengths=np.where(np.arange(400) < 100, 2, 1),
        request_ids=short.request_ids,
    )
    with pytest.raises(ValueError, match="100 rounds drafted position 2"):
        fit_calibration(short)
    rounds = rounds_with((1.0,), num_rounds=400)
    unknowing = RecordedRounds(
        confidences=rounds.confidences,
        accepted=rounds.accepted * 0,
        lengths=rounds.lengths,
        request_ids=rounds.request_ids,
    )
    with pytest.warns(UserWarning, match="confidences that need as much know little"):
        fit_calibration(unknowing)
    assert 1.0 in TEMPERATURES


def test_apply() -> None:
    calibration = Calibration((2.0, 0.5, 1.0))
    given = torch.tensor([[0.8, 0.8, 0.3], [0.0, 1.0, 1.0]], dtype=torch.float32)
    corrected = calibration.apply(given)
    assert corrected.dtype == torch.float64
    assert corrected[0].tolist() == pytest.approx([2 / 3, 16 / 17, 0.3], abs=1e-6)
    assert corrected[1].tolist() == [0, 1, 1]
    assert calibration.apply(given[:, :1]).shape == (2, 1)
    table = calibration.apply_to_table(np.array([[0.8, 0.8, np.nan]]))
    assert table[0, :2].tolist() == pytest.approx([2 / 3, 16 / 17])
    assert np.isnan(table[0, 2])
    with pytest.raises(ValueError, match="a block has 4 confidences and the calibration 3 temperatures"):
        calibration.apply(torch.zeros(1, 4))
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="must be positive and finite"):
            Calibration((1.0, wrong))


def test_file(tmp_path: Path) -> None:
    calibration = Calibration((1.25, 0.1), 0.7, "abc")
    assert calibration.save(tmp_path) == tmp_path / FILE
    assert Calibration.load(tmp_path) == calibration
    stored = json.loads((tmp_path / FILE).read_text())
    for change, message in (
        ({"schema": "x"}, "schema is 'x'"),
        ({"temperatures": [0]}, "positive and finite"),
        ({"temperatures": 1}, "not iterable"),
        ({"schema": "dspark-calibration/1"}, "not 'dspark-calibration/2'.*Make one with"),
    ):
        (tmp_path / FILE).write_text(json.dumps(stored | change))
        with pytest.raises(ValueError, match=message):
            Calibration.load(tmp_path)
    (tmp_path / FILE).write_text("{}")
    with pytest.raises(ValueError, match="lacks 'schema'"):
        Calibration.load(tmp_path)
    with pytest.raises(ValueError, match="Make one with `dspark calibrate`"):
        Calibration.load(tmp_path / "nowhere")


def test_a_calibration_is_for_the_weights_and_the_temperature_that_it_was_fitted_at(tiny: Tiny, tmp_path: Path) -> None:
    target = tiny("qwen3")
    network: Any = random_drafter(target, kind="dspark", dtype=torch.float64, target_layer_ids=(0,)).network
    settings: dict[str, Any] = {"target": target, "device": torch.device("cpu")}

    def save() -> Path:
        save_network(network, tmp_path, target=target.config, dtype=torch.float32)
        return tmp_path / FILE

    save()
    own = weights_sha256(tmp_path)
    assert own == hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    Calibration((2.0, 0.5), 0.7, own).save(tmp_path)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        load_drafter(tmp_path, dtype=dtype, temperature=0.7, **settings)
    with pytest.warns(UserWarning, match=r"fitted at temperature 0\.7 and is used at 1"):
        load_drafter(tmp_path, dtype=torch.float32, temperature=1.0, **settings)
    stale = (tmp_path / FILE).read_text()
    network.fc.weight.data *= 1.1
    assert not save().exists()
    load_drafter(tmp_path, dtype=torch.float32, **settings)
    (tmp_path / FILE).write_text(stale)
    with pytest.raises(
        ValueError, match=rf"fitted to other weights \({own[:12]} instead of .*`dspark calibrate`, or delete"
    ):
        load_drafter(tmp_path, dtype=torch.float32, **settings)
    load_drafter(tmp_path, dtype=torch.float32, calibrated=False, **settings)


def test_a_drafter_reports_calibrated_confidences_and_drafts_the_same(tiny: Tiny, tmp_path: Path) -> None:
    target = tiny("qwen3")
    network: Any = random_drafter(target, kind="dspark", dtype=torch.float64, target_layer_ids=(0,)).network
    save_network(network, tmp_path, target=target.config, dtype=torch.float64)
    calibration = Calibration((2.0, 0.5, 1.0, 3.0), weights_sha256=weights_sha256(tmp_path))
    settings: dict[str, Any] = {"target": target, "device": torch.device("cpu"), "dtype": torch.float64}
    asked = [Request(prompt_token_ids=(1, 2), max_new_tokens=12, num_draft_tokens=4, seed=1)]

    def decode(calibrated: bool) -> tuple[tuple[int, ...], list[list[list[float]]]]:
        recorder = Recorder()
        drafter = load_drafter(tmp_path, calibrated=calibrated, **settings)
        [generation] = SpeculativeDecoder(target, drafter, scheduler=recorder).generate(asked)
        return generation.token_ids, recorder.rounds

    without_file = decode(calibrated=True)
    calibration.save(tmp_path)
    text, rounds = decode(calibrated=True)
    assert decode(calibrated=False) == without_file
    assert text == without_file[0]
    for corrected, raw in zip(rounds, without_file[1], strict=True):
        assert corrected[0] == pytest.approx(calibration.apply(torch.tensor(raw[0], dtype=torch.float64)).tolist())
    assert rounds != without_file[1]


def test_diagram() -> None:
    rounds = rounds_with(PLANTED, num_rounds=2000)
    figure = reliability_diagram({"before": rounds, "after": calibrated(rounds, Calibration((2.0, 1.0, 0.5, 1.4)))})
    before, after = figure.axes
    error = calibration_error(pooled(rounds))
    assert before.get_title() == f"before: ECE over all positions {error:.1%}"
    assert after.get_title() != before.get_title()
    first = [each for each in reliability_table(prefix_survival(rounds, 0)) if each.count >= 30]
    assert before.lines[1].get_ydata() == pytest.approx([each.happened for each in first])
