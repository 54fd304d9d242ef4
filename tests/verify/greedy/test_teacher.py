import numpy as np
import pytest

from verify.greedy.teacher import Divergence, judge_greedy

ROWS = np.array([[0.0, 2.0, 1.0], [3.0, 3.0, 0.0], [1.0, 0.0, 0.999], [5.0, -np.inf, 0.0]])


def test_arg_max_and_exact_ties_are_exact():
    for tied in (0, 1):
        judged = judge_greedy([1, tied, 0, 0], ROWS, floor=0.0)
        assert judged.exact
        assert (judged.num_positions, judged.near_ties, judged.largest_gap) == (4, 0, 0.0)


@pytest.mark.parametrize(("floor", "near"), [(0.0, 0), (0.0004, 0), (0.0006, 1)])
def test_a_near_tie_is_allowed_up_to_twice_the_floor(floor, near):
    judged = judge_greedy([1, 0, 2, 0], ROWS, floor=floor)
    assert judged.near_ties == near
    assert judged.near_tie_positions == (2,) * near
    assert len(judged.divergences) == 1 - near
    assert judged.largest_gap == pytest.approx(0.001)
    assert not judged.exact


def test_a_wrong_and_a_banned_token_are_divergences_with_their_gap():
    judged = judge_greedy([2, 0, 0, 1], ROWS, floor=0.1)
    assert judged.divergences == (
        Divergence(position=0, emitted=2, argmax=1, gap=1.0),
        Divergence(position=3, emitted=1, argmax=0, gap=np.inf),
    )
    assert judged.num_exact == 2


@pytest.mark.parametrize(
    ("tokens", "rows", "message"),
    [
        ([0, 1], ROWS[:1], "it must be"),
        ([3], ROWS[:1], "token id 3 is outside"),
        ([0], [[np.nan, 1.0]], "must be finite"),
        ([0], [[-np.inf, -np.inf]], "must be finite"),
    ],
)
def test_what_does_not_fit_is_refused(tokens, rows, message):
    with pytest.raises(ValueError, match=message):
        judge_greedy(tokens, rows, floor=0.0)


def test_an_empty_output_has_no_positions():
    assert judge_greedy([], np.zeros((0, 3)), floor=0.0).num_positions == 0
