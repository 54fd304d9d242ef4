"""Properties of every scheduler; numbers are dyadic, so that ties are ties and equality is exact."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from dspark.scheduler.algorithm import PrefixScheduler
from dspark.scheduler.fixed import FixedLength
from dspark.scheduler.lagged import LaggedScheduler
from dspark.scheduler.profile import SpeedProfile
from dspark.scheduler.protocol import Scheduler
from dspark.scheduler.ranking import ranked, survivals
from dspark.scheduler.threshold import StaticThreshold
from tests.dspark.scheduler.policies import CAUSAL, RetrospectiveScheduler, Rows, after, profile_of

MOST_ROWS, MOST_DRAFTS = 3, 3
sixteenths = st.integers(0, 16).map(lambda number: number / 16)
batches = st.lists(st.lists(sixteenths, max_size=MOST_DRAFTS), min_size=1, max_size=MOST_ROWS)
drafting_batches = st.lists(st.lists(sixteenths, min_size=1, max_size=MOST_DRAFTS), min_size=1, max_size=MOST_ROWS)
# Falling speeds with plateaus (a staircase) for as many tokens as a batch can have.
NUM_SPEEDS = MOST_ROWS * (1 + MOST_DRAFTS)
profiles = st.lists(st.integers(1, 64), min_size=NUM_SPEEDS, max_size=NUM_SPEEDS).map(
    lambda numbers: profile_of(*(number / 64 for number in sorted(numbers, reverse=True)))
)


@dataclass(frozen=True)
class Rewrite:
    """A batch with a past, and the same batch where the confidences behind draft `position` of `row` are others.

    Draft `position` itself enters nowhere else than in those.
    """

    profile: SpeedProfile
    past: Sequence[Rows]
    batch: Sequence[list[float]]
    row: int
    position: int
    tail: list[float]

    @property
    def rewritten(self) -> list[list[float]]:
        rows = [list(row) for row in self.batch]
        rows[self.row][self.position + 1 :] = self.tail
        return rows

    def changes_admission(self, scheduler: Scheduler) -> bool:
        """Whether the rewrite changes whether the draft is verified."""
        before, now = (after(scheduler, self.past).admit(rows)[self.row] for rows in (self.batch, self.rewritten))
        return (before > self.position) != (now > self.position)


@st.composite
def rewrites(draw: st.DrawFn) -> Rewrite:
    batch = draw(drafting_batches)
    row = draw(st.integers(0, len(batch) - 1))
    position = draw(st.integers(0, len(batch[row]) - 1))
    left = len(batch[row]) - 1 - position
    tail = draw(st.lists(sixteenths, min_size=left, max_size=left))
    return Rewrite(draw(profiles), draw(st.lists(batches, max_size=3)), batch, row, position, tail)


@pytest.mark.parametrize("name", CAUSAL)
@given(case=rewrites())
@settings(max_examples=150, deadline=None)
def test_a_draft_has_no_part_in_its_own_admission(name: str, case: Rewrite) -> None:
    assert not case.changes_admission(CAUSAL[name](case.profile))


def test_the_search_past_the_stop_breaks_that() -> None:
    case = find(
        rewrites(),
        lambda case: case.changes_admission(RetrospectiveScheduler(case.profile)),
        settings=settings(max_examples=5000, derandomize=True, database=None, phases=[Phase.generate]),
    )
    assert case.batch != case.rewritten


@pytest.mark.parametrize("name", CAUSAL)
@given(profile=profiles, past=st.lists(batches, max_size=3), batch=batches)
@settings(max_examples=80, deadline=None)
def test_each_row_gets_a_number_of_its_own_drafts(
    name: str, profile: SpeedProfile, past: Sequence[Rows], batch: list[list[float]]
) -> None:
    admitted = after(CAUSAL[name](profile), past).admit(batch)
    assert len(admitted) == len(batch)
    assert all(0 <= length <= len(row) for length, row in zip(admitted, batch, strict=True))


def theta(profile: SpeedProfile, batch: Rows, lengths: Sequence[int]) -> float:
    gain = math.fsum(math.prod(row[: j + 1]) for row, length in zip(batch, lengths, strict=True) for j in range(length))
    return (len(batch) + gain) * profile.at(len(batch) + sum(lengths))


def transcribed(profile: SpeedProfile, batch: Rows) -> tuple[int, ...]:
    """Algorithm 1 word by word: of the rows' next drafts take the likeliest; stop when theta does not rise."""
    lengths = [0] * len(batch)
    while True:
        fronts = [
            (-math.prod(row[: length + 1]), length, index)
            for index, (row, length) in enumerate(zip(batch, lengths, strict=True))
            if length < len(row)
        ]
        if not fronts:
            return tuple(lengths)
        index = min(fronts)[2]
        longer = [length + (place == index) for place, length in enumerate(lengths)]
        if theta(profile, batch, longer) <= theta(profile, batch, lengths):
            return tuple(lengths)
        lengths = longer


@given(profile=profiles, batch=batches)
@settings(max_examples=300, deadline=None)
def test_algorithm_1_is_its_transcription(profile: SpeedProfile, batch: list[list[float]]) -> None:
    assert PrefixScheduler(profile).open().admit(batch) == transcribed(profile, batch)


@given(profile=profiles, batch=batches)
@settings(max_examples=150, deadline=None)
def test_algorithm_1_never_plans_worse_than_no_draft(profile: SpeedProfile, batch: list[list[float]]) -> None:
    admitted = PrefixScheduler(profile).admit(batch)
    assert theta(profile, batch, admitted) >= theta(profile, batch, [0] * len(batch))
    assert theta(profile, batch, RetrospectiveScheduler(profile).admit(batch)) >= theta(profile, batch, admitted)


@given(profile=profiles, batch=batches)
@settings(max_examples=150, deadline=None)
def test_a_past_that_repeats_makes_the_lagged_one_the_best_of_all(
    profile: SpeedProfile, batch: list[list[float]]
) -> None:
    """Then the old confidences are right, and the plan is that of the search over everything, which is causal here."""
    for lag in (1, 2):
        session = after(LaggedScheduler(profile, lag=lag), [batch] * lag)
        assert session.admit(batch) == RetrospectiveScheduler(profile).admit(batch)


@given(profile=profiles, past=batches, batch=drafting_batches, place=st.integers(0), row=st.integers(0), to=sixteenths)
@settings(max_examples=200, deadline=None)
def test_more_confidence_never_shortens_its_own_row(
    profile: SpeedProfile, past: Rows, batch: list[list[float]], place: int, row: int, to: float
) -> None:
    """Of Algorithm 1 that holds for a row by itself: beside others, a likelier draft can make the next ones not worth it."""
    row %= len(batch)
    place %= len(batch[row])
    raised = [list(values) for values in batch]
    raised[row][place] = max(to, raised[row][place])
    assert PrefixScheduler(profile).admit([raised[row]]) >= PrefixScheduler(profile).admit([batch[row]])
    for scheduler in (LaggedScheduler(profile, lag=1), StaticThreshold(0.6)):
        assert after(scheduler, [past]).admit(raised)[row] >= after(scheduler, [past]).admit(batch)[row]


def test_a_staircase_stops_algorithm_1_and_not_the_lagged_one() -> None:
    """The second draft fills a tile that the first has opened."""
    profile, batch = profile_of(1.0, 0.5, 0.5, 0.5), [[0.9, 0.9, 0.9]]
    assert PrefixScheduler(profile).admit(batch) == (0,)
    assert after(LaggedScheduler(profile, lag=1), [batch]).admit(batch) == (3,)


def test_free_drafts_are_all_verified_and_hopeless_ones_never() -> None:
    flat = SpeedProfile(token_counts=(1, 100), steps_per_second=(1.0, 1.0))
    assert PrefixScheduler(flat).admit([[0.5, 0.5], [1.0], []]) == (2, 1, 0)
    assert PrefixScheduler(flat).admit([[0.5, 0.0, 1.0]]) == (1,)  # strictly: 0 does not raise theta
    assert PrefixScheduler(flat).admit([[math.nan, 1.0], [1.0000001]]) == (0, 1)


@pytest.mark.parametrize("name", CAUSAL)
def test_no_rows_and_no_drafts(name: str) -> None:
    session = CAUSAL[name](profile_of(1.0, 0.9)).open()
    for _ in range(4):
        assert session.admit([]) == ()
        assert session.admit([[], []]) == (0, 0)


def test_ties_go_to_the_earlier_position_then_the_earlier_row() -> None:
    order = [(each.row, each.position) for each in ranked([[0.5, 1.0], [0.5, 1.0], [1.0, 0.5]])]
    assert order == [(2, 0), (0, 0), (1, 0), (0, 1), (1, 1), (2, 1)]
    assert survivals([0.5, math.nan, 0.5]) == [0.5, 0.0, 0.0]
    assert survivals([1.5, -1.0]) == [1.0, 0.0]


def test_threshold() -> None:
    scheduler = StaticThreshold(0.5)
    assert scheduler.open().admit([[0.5, 0.7, 0.4, 0.9], [0.2], [], [math.nan]]) == (2, 0, 0, 0)
    assert StaticThreshold(0.0).admit([[0.0, 0.0]]) == (2,)
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="must be between 0 and 1"):
            StaticThreshold(wrong)


def test_fixed_length() -> None:
    assert FixedLength(2).open().admit([[0.0] * 3, [0.0]]) == (2, 1)
    with pytest.raises(ValueError, match="must be at least 0"):
        FixedLength(-1)


def test_the_past_is_as_old_as_the_lag_says() -> None:
    profile = SpeedProfile(token_counts=(1, 2, 3), steps_per_second=(1.0, 0.6, 0.5))
    bad, good = [[0.1, 0.1]], [[1.0, 1.0]]
    session = LaggedScheduler(profile).open()
    assert session.admit(bad) == (0,)  # no past: Algorithm 1
    assert session.admit(good) == (2,)
    assert session.admit(good) == (0,)  # two rounds ago: bad
    assert session.admit(bad) == (2,)  # two rounds ago: good
    with pytest.raises(ValueError, match="lag is 0; it must be at least 1"):
        LaggedScheduler(profile, lag=0)


def test_rows_that_leave_or_join_scale_the_past() -> None:
    """Half of the rows of the past verified both drafts: half of the capacity for half of the rows, twice for twice."""
    profile = SpeedProfile(token_counts=(1, 100), steps_per_second=(1.0, 1.0))
    past = [[1.0, 1.0], [0.0, 0.0]] * 2
    even = [[0.9, 0.8]]
    for num_rows, capacity in ((4, 4), (2, 2), (1, 1), (8, 8)):
        session = after(LaggedScheduler(profile, lag=1), [past])
        assert sum(session.admit(even * num_rows)) == capacity
