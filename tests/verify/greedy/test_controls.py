import numpy as np
import pytest
from scipy.stats import binomtest

from verify.greedy.controls import divergences_do_not_cluster, first_divergence


@pytest.mark.parametrize(
    ("expected", "observed", "index"),
    [([1, 2], [1, 2], None), ([1, 2, 3], [1, 5, 3], 1), ([1, 2], [1, 2, 3], 2), ([1, 2], [], 0)],
)
def test_first_divergence(expected, observed, index):
    assert first_divergence(expected, observed) == index


def test_clustering_holds_its_false_alarm_and_sees_a_rollback_bug():
    rng = np.random.default_rng(0)
    alpha, alarms, seen = 0.05, 0, 0
    for _ in range(1000):
        marked = rng.random(300) < 0.4
        noise = rng.random(300) < 0.05
        alarms += not divergences_do_not_cluster(noise, marked, alpha=alpha).holds
        bug = noise | (marked & (rng.random(300) < 0.1))
        seen += not divergences_do_not_cluster(bug, marked, alpha=alpha).holds
    assert binomtest(alarms, 1000, alpha, alternative="greater").pvalue > 1e-4
    assert seen > 800
    control = divergences_do_not_cluster(marked, marked)
    assert control.p_value < 1e-20
    assert control.false_alarm == 1e-3


def test_nothing_to_compare_is_no_alarm_and_bad_shapes_are_refused():
    assert divergences_do_not_cluster([False] * 3, [True] * 3).p_value == 1.0
    with pytest.raises(ValueError, match="one flag per position"):
        divergences_do_not_cluster([True], [True, False])
