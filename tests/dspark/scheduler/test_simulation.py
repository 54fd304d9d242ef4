"""The simulated service, where what must come out is known."""

import numpy as np
import pytest

from dspark.rounds import RecordedRounds
from dspark.scheduler.algorithm import PrefixScheduler
from dspark.scheduler.fixed import FixedLength
from dspark.scheduler.lagged import LaggedScheduler
from dspark.scheduler.profile import SpeedProfile
from dspark.scheduler.protocol import Scheduler
from dspark.scheduler.round_profile import RoundProfile
from dspark.scheduler.simulation import Outcome, Service, load_figure, simulate, sweep
from dspark.scheduler.skipping import PATIENCE, SkippingScheduler
from dspark.scheduler.threshold import StaticThreshold

SPEED = 10.0


def rounds_at(profile: SpeedProfile, *, draft_seconds: float = 0.0) -> RoundProfile:
    """Rounds of a target with these speeds, and of a drafter that takes so long."""
    rows, drafts = range(1, 17), range(5)
    return RoundProfile(
        row_counts=tuple(rows),
        draft_counts=tuple(drafts),
        plain_seconds=tuple(1 / profile.at(row) for row in rows),
        drafted_seconds=tuple(
            tuple(draft_seconds + 1 / profile.at(row * (1 + draft)) for draft in drafts) for row in rows
        ),
    )


NOTHING = SpeedProfile(token_counts=(1, 10_000), steps_per_second=(SPEED, SPEED))  # tokens cost nothing
FREE = rounds_at(NOTHING)
DEAR = rounds_at(SpeedProfile(token_counts=(1, 4, 1000), steps_per_second=(SPEED, SPEED, SPEED / 50)))  # four are free


def rounds_of(accepted: list[int], *, num_drafts: int = 4, num_requests: int = 5) -> RecordedRounds:
    """The first `accepted` drafts were sure to be accepted, the others sure to be rejected."""
    count = np.array(accepted * num_requests)
    confidences = (np.arange(num_drafts) < count[:, None]).astype(float)
    lengths = np.full(len(count), num_drafts)
    ids = np.repeat(np.arange(num_requests), len(accepted))
    return RecordedRounds(confidences=confidences, accepted=count, lengths=lengths, request_ids=ids)


def run(
    scheduler: object, load: float, rounds: RecordedRounds, profile: RoundProfile = FREE, **service: float
) -> Outcome:
    settings = {"num_requests": 60, "num_tokens": 40, **service}
    return simulate("policy", scheduler, load, rounds=rounds, profile=profile, service=Service(**settings), seed=1)  # type: ignore[arg-type]


def test_alone_a_user_sees_tokens_per_round_times_speed() -> None:
    plain = run(FixedLength(0), 1e-6, rounds_of([4]))
    assert plain.tokens_per_second_per_user == pytest.approx(SPEED)
    assert (plain.rows, plain.drafts_per_row, plain.wait_seconds, plain.mean_acceptance_length) == (1, 0, 0, 1)
    drafted = run(FixedLength(4), 1e-6, rounds_of([4]))
    assert drafted.tokens_per_second_per_user == pytest.approx(5 * SPEED)
    assert drafted.draft_acceptance_rate == 1
    half = run(FixedLength(4), 1e-6, rounds_of([2]), rounds_at(NOTHING, draft_seconds=1 / SPEED))
    # 13 rounds of 3 tokens and one of 1; drafting takes as long as the target.
    assert half.tokens_per_second_per_user == pytest.approx(40 / 14 * SPEED / 2)


def test_a_full_service_gives_all_rows_times_speed() -> None:
    outcome = run(FixedLength(0), 1e6, rounds_of([0]), max_rows=4)
    # Waves of 4 requests take 4 s each; the first request begins a step before the others are there.
    assert outcome.tokens_per_second == pytest.approx(60 * 40 / (15 * 4 + 1 / SPEED), rel=1e-3)
    assert outcome.rows == pytest.approx(2400 / 601)
    assert outcome.wait_seconds == pytest.approx(4 * np.mean(np.arange(15)), rel=0.1 / 28)
    assert outcome.tokens_per_second_per_user == pytest.approx(SPEED, rel=1e-3)


def test_arrivals_come_at_the_load() -> None:
    outcome = run(FixedLength(0), 0.5, rounds_of([0]), num_requests=2000, num_tokens=1)
    assert outcome.tokens_per_second == pytest.approx(0.5, rel=0.1)  # 2000 exponential gaps: 4 standard errors


def test_one_seed_gives_one_result_and_all_policies_meet_the_same_requests() -> None:
    rounds = rounds_of([0, 1, 2, 3, 4])
    policies: dict[str, Scheduler] = {
        "fixed": FixedLength(2),
        "again": FixedLength(2),
        "threshold": StaticThreshold(0.5),
    }
    first, second = (
        sweep(policies, [0.5, 2.0], rounds=rounds, profile=FREE, service=Service(num_requests=30), seed=7)
        for _ in range(2)
    )
    assert first == second
    assert [(each.policy, each.load) for each in first[:3]] == [(name, 0.5) for name in policies]
    fixed, again, threshold = first[:3]
    assert (fixed.tokens_per_second, fixed.rows) == (again.tokens_per_second, again.rows)
    assert threshold.draft_acceptance_rate == 1  # these confidences know
    other = sweep(policies, [0.5], rounds=rounds, profile=FREE, service=Service(num_requests=30), seed=8)
    assert other[0].tokens_per_second != first[0].tokens_per_second


@pytest.mark.parametrize("scheduler", [PrefixScheduler(DEAR), LaggedScheduler(DEAR)])
def test_schedulers_adapt_to_load_and_beat_every_fixed_length(scheduler: object) -> None:
    rounds = rounds_of([0, 0, 0, 4])
    slack, busy = (run(scheduler, load, rounds, DEAR, max_rows=16) for load in (1e-6, 1e3))
    fixed = [run(FixedLength(length), 1e3, rounds, DEAR, max_rows=16) for length in range(5)]
    assert busy.draft_acceptance_rate > 0.5
    assert busy.tokens_per_second > max(each.tokens_per_second for each in fixed)
    assert slack.tokens_per_second_per_user > SPEED
    assert max(each.draft_acceptance_rate for each in fixed) < 0.3


def test_a_round_that_does_not_draft_takes_the_time_of_a_plain_one() -> None:
    """Drafting takes as long as ten rounds; it is done in the first and then in every 17th, and five tokens come of it."""
    dear = rounds_at(NOTHING, draft_seconds=10 / SPEED)
    scheduler = SkippingScheduler(PrefixScheduler(dear), dear)
    outcome = run(scheduler, 1e-6, rounds_of([4]), dear, num_tokens=10 * (5 + PATIENCE))
    rounds, drafted = 10 * (1 + PATIENCE), 10
    assert outcome.tokens_per_second_per_user == pytest.approx(10 * (5 + PATIENCE) * SPEED / (rounds + 10 * drafted))
    assert outcome.drafts_per_row == pytest.approx(4 * drafted / rounds)


def test_requests_keep_their_own_source() -> None:
    """A request draws from one recorded request: half of the users see plain speed, the others five times that."""
    easy, hard = rounds_of([4], num_requests=1), rounds_of([0], num_requests=1)
    both = RecordedRounds(
        confidences=np.concatenate([easy.confidences, hard.confidences]),
        accepted=np.array([4, 0]),
        lengths=np.array([4, 4]),
        request_ids=np.array([0, 1]),
    )
    outcome = run(FixedLength(4), 1e-6, both, num_requests=400)
    assert outcome.tokens_per_second_per_user == pytest.approx(3 * SPEED, rel=0.14)  # 4 standard errors of a fair coin
    assert outcome.tokens_per_second_per_user != pytest.approx(
        SPEED * 40 / 24, rel=0.2
    )  # what a mix in each would give


def test_errors_and_figure() -> None:
    with pytest.raises(ValueError, match=r"load is 0\.0"):
        run(FixedLength(0), 0.0, rounds_of([0]))
    short = rounds_of([0])
    short = RecordedRounds(
        confidences=np.where(np.arange(4) < 3, short.confidences, np.nan),
        accepted=short.accepted,
        lengths=np.full(len(short), 3),
        request_ids=short.request_ids,
    )
    with pytest.raises(ValueError, match="no recorded round has a whole block"):
        run(FixedLength(0), 1.0, short)
    outcomes = [run(FixedLength(0), load, rounds_of([0])) for load in (0.1, 1.0)]
    speeds, lengths = load_figure(outcomes).axes
    assert speeds.lines[0].get_ydata() == pytest.approx([each.tokens_per_second for each in outcomes])
    assert lengths.lines[0].get_xdata() == pytest.approx([0.1, 1.0])
    assert not load_figure(outcomes, baselines=["policy"]).axes[1].lines
