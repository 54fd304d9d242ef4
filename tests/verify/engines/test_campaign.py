"""The campaign's checks on a correct engine, and on engines with one planted mistake each."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from verify.checks.engine import (
    OTHER_MODEL_NATS,
    engine_noise,
    judge_answered,
    judge_control,
    judge_same_outputs,
    judge_speculates,
)
from verify.checks.log_audit import Audit
from verify.checks.log_contract import judge_contract, judge_records
from verify.checks.log_law import judge_fresh, judge_greedy, judge_logged_logprobs, judge_reproduced, judge_sampled
from verify.checks.two_sample import judge_same_greedy, judge_two_samples
from verify.engines.campaign import MAX_FAILURES_IN_A_ROW, Answers, Campaign, plan_twins
from verify.engines.protocol import Failure
from verify.judge import NotApplicable
from verify.protocol import AcceptanceRecord, Generation
from verify.results import Verdict

MakeCampaign = Callable[..., Campaign]
MakeAudit = Callable[..., Audit]
ALPHA = 1e-6


@pytest.fixture(scope="session")
def correct(make_campaign: MakeCampaign) -> Campaign:
    return make_campaign("")


def test_a_correct_engine_passes_every_judge(correct: Campaign, audit: MakeAudit) -> None:
    for name in ("plain greedy", "greedy, 1 at once", "greedy, 4 at once", "mixed", "logit_bias"):
        assert judge_greedy(audit(correct, name)).verdict is Verdict.PASS
    for name in ("plain sampled", "sampled, 4 at once", "sampled, temperature 0.6", "fresh"):
        finding = judge_sampled(audit(correct, name), alpha=ALPHA)
        assert finding.verdict is Verdict.PASS, finding.reason
    every = audit(correct, *correct.groups)
    assert judge_contract(every).verdict is Verdict.PASS
    assert (
        judge_speculates([correct.ask(name) for name in correct.groups if not correct.groups[name].plain]).verdict
        is Verdict.PASS
    )
    assert judge_reproduced(audit(correct, "seeds")).verdict is Verdict.PASS
    assert judge_fresh(audit(correct, "fresh"), alpha=ALPHA).verdict is Verdict.PASS
    assert judge_logged_logprobs(audit(correct, "logprobs")).verdict is Verdict.PASS
    answered = judge_answered([correct.ask(name) for name in correct.groups])
    assert answered.verdict is Verdict.PASS
    assert answered.observations == sum(len(group.requests) for group in correct.groups.values())
    with pytest.raises(NotApplicable, match="no line holds a record"):
        judge_records(every)  # totals alone are no record


def test_what_is_not_claimed_is_not_asked(correct: Campaign) -> None:
    assert {"top_k", "min_new_tokens", "frequency_penalty"}.isdisjoint(correct.groups)
    assert {"logit_bias", "seeds at once", "logprobs", "plain logprobs"} <= set(correct.groups)


@pytest.mark.parametrize(
    ("bug", "group"),
    [
        ("bonus of the draft", "sampled, 1 at once"),
        ("no residual", "sampled, 1 at once"),
        ("wrong at once", "sampled, 4 at once"),
        ("wrong without a seed", "sampled, 1 at once"),
        ("wrong without a seed", "fresh"),
    ],
)
def test_planted_bugs_of_the_law(make_campaign: MakeCampaign, audit: MakeAudit, bug: str, group: str) -> None:
    campaign = make_campaign(bug, repeats=20)
    assert judge_sampled(audit(campaign, group), alpha=ALPHA).verdict is Verdict.FAIL
    assert judge_sampled(audit(campaign, "plain sampled"), alpha=ALPHA).verdict is Verdict.PASS
    if bug == "wrong at once":
        assert judge_sampled(audit(campaign, "sampled, 1 at once"), alpha=ALPHA).verdict is Verdict.PASS


def test_another_order_of_processors_is_named(correct: Campaign, make_campaign: MakeCampaign, audit: MakeAudit) -> None:
    assert judge_sampled(audit(correct, "top_p"), alpha=ALPHA).verdict is not Verdict.FAIL
    finding = judge_sampled(audit(make_campaign("temperature last"), "top_p"), alpha=ALPHA)
    assert finding.verdict is Verdict.FAIL
    assert "a temperature after top-p or min-p keeps other tokens" in finding.diagnosis


def test_planted_bug_of_the_greedy_bonus(make_campaign: MakeCampaign, audit: MakeAudit) -> None:
    finding = judge_greedy(audit(make_campaign("bonus of the draft"), "greedy, 1 at once"))
    assert finding.verdict is Verdict.FAIL
    assert "one position earlier" in finding.diagnosis  # the law of the last draft, drawn from again


def test_planted_bugs_of_stops_and_seeds(make_campaign: MakeCampaign, audit: MakeAudit) -> None:
    assert judge_contract(audit(make_campaign("runs past stops"), "stopping")).verdict is Verdict.FAIL
    assert judge_fresh(audit(make_campaign("constant seed"), "fresh"), alpha=ALPHA).verdict is Verdict.FAIL
    reseeded = make_campaign("fresh seeds")
    assert judge_reproduced(audit(reseeded, "seeds")).verdict is Verdict.FAIL


def test_an_engine_that_decodes_plainly_does_not_pass_for_a_speculative_one(make_campaign: MakeCampaign) -> None:
    campaign = make_campaign("never speculates")
    for name in ("greedy, 1 at once", "sampled, 1 at once"):
        assert judge_speculates([campaign.ask(name)]).verdict is Verdict.INCONCLUSIVE


def test_the_control_must_not_speculate(make_campaign: MakeCampaign) -> None:
    campaign = make_campaign("always speculates")
    finding = judge_control([campaign.ask(name) for name in ("plain greedy", "plain sampled")])
    assert finding.verdict is Verdict.FAIL
    assert "without speculation report drafts" in finding.reason
    assert judge_control([campaign_with_records("never speculates", make_campaign)]).verdict is Verdict.PASS
    with pytest.raises(NotApplicable, match="tells how many drafts"):
        judge_control([make_campaign("").ask("plain greedy")])


def campaign_with_records(bug: str, make_campaign: MakeCampaign) -> Answers:
    """Plain answers that tell of no draft."""
    answers = make_campaign(bug).ask("plain greedy")
    nothing = AcceptanceRecord(
        num_spec_steps=4, num_draft_tokens=0, num_accepted_draft_tokens=0, acceptance_histogram=()
    )
    told = {index: replace(each, record=nothing) for index, each in answers.generations.items()}
    return replace(answers, generations=told)


def test_a_wrong_token_at_the_limit_is_seen(make_campaign: MakeCampaign, audit: MakeAudit, correct: Campaign) -> None:
    assert judge_greedy(audit(correct, "stopping")).verdict is Verdict.PASS
    campaign = make_campaign("wrong at the limit")
    assert judge_greedy(audit(campaign, "stopping")).verdict is Verdict.FAIL
    assert judge_greedy(audit(campaign, "greedy, 1 at once")).verdict is Verdict.PASS


def test_lost_requests_are_an_error_and_the_others_are_judged(make_campaign: MakeCampaign, audit: MakeAudit) -> None:
    campaign = make_campaign("some fail")
    names = ("greedy, 1 at once", "sampled, 1 at once", "sampled, 4 at once")
    finding = judge_answered([campaign.ask(name) for name in names])
    assert finding.verdict is Verdict.ERROR
    assert "status: out of memory" in finding.reason
    assert judge_greedy(audit(campaign, "greedy, 1 at once")).verdict is Verdict.PASS


def test_an_engine_that_answers_nothing_is_asked_no_more(make_campaign: MakeCampaign) -> None:
    campaign = make_campaign("always fails")
    answers = campaign.ask("sampled, 1 at once")
    assert len(answers.failures) == len(answers.group.requests) == 18
    assert campaign.lost is None
    campaign.ask("sampled, 4 at once")
    assert campaign.lost is not None
    asked = campaign.engine._engine.answered  # type: ignore[attr-defined]
    assert asked == 18 + MAX_FAILURES_IN_A_ROW // 2
    assert len(campaign.ask("mixed").failures) == 12
    assert campaign.engine._engine.answered == asked  # type: ignore[attr-defined]


def test_an_engine_that_fails_at_one_setting_is_asked_the_others(make_campaign: MakeCampaign) -> None:
    """As vLLM's CPU build does at top-k: at 56 prompts it counted as lost, and the rest of the campaign was not asked."""
    campaign = make_campaign("logit_bias fails")
    group = campaign.groups["logit_bias"]
    campaign.groups = {**campaign.groups, "logit_bias": replace(group, requests=[*group.requests] * 2)}
    assert len(campaign.ask("logit_bias").failures) == 24 > MAX_FAILURES_IN_A_ROW
    assert len(campaign.ask("top_p").generations) == 6


def test_no_control_is_said_and_is_no_failure(make_campaign: MakeCampaign, audit: MakeAudit) -> None:
    campaign = make_campaign("no control")
    answers = campaign.ask("plain greedy")
    assert (answers.no_control, answers.failures) == ("it always speculates", {})
    with pytest.raises(NotApplicable, match="it always speculates"):
        judge_same_outputs(answers, answers, audit=audit(campaign, "plain greedy"), claim="c", diagnosis="d")


def test_seeded_identity(correct: Campaign, audit: MakeAudit) -> None:
    exact = audit(correct, "seeds")
    common: dict[str, Any] = {"audit": exact, "diagnosis": "d"}
    seeds, at_once, plain = (correct.ask(name) for name in ("seeds", "seeds at once", "plain seeds"))
    assert judge_same_outputs(seeds, at_once, claim="c", **common).verdict is Verdict.PASS
    found = judge_same_outputs(seeds, plain, claim="a seed gives one sequence", **common)
    assert (
        found.verdict is Verdict.FAIL
    )  # this engine's coins go elsewhere without drafts, and it does not claim otherwise
    assert "differ from output position" in found.reason
    noise = replace(exact.noise, max_total_variation=0.02)  # as bfloat16 has it
    coarse = common | {"audit": audit(correct, "seeds", noise=noise)}
    found = judge_same_outputs(seeds, plain, claim="a seed gives one sequence", **coarse)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "rounding may have moved so many coins" in found.reason


def test_the_engines_own_noise_widens_the_floor_up_to_another_model(correct: Campaign, audit: MakeAudit) -> None:
    exact = engine_noise(audit(correct, "plain logprobs"))
    answers = correct.ask("plain logprobs")

    def shifted(by: float) -> float:
        moved = Campaign(correct.engine, list(correct.groups.values()))
        moved.answers["plain logprobs"] = Answers(
            answers.group,
            {
                index: replace(each, logprobs=[value + by for value in each.logprobs or ()])
                for index, each in answers.generations.items()
            },
        )
        return engine_noise(audit(moved, "plain logprobs")).max_logprob_difference

    assert exact.max_logprob_difference < 1e-4
    assert shifted(0.01) == pytest.approx(0.01, abs=1e-4)
    assert shifted(2 * OTHER_MODEL_NATS) == exact.max_logprob_difference


def test_a_malformed_answer_is_a_broken_line(correct: Campaign) -> None:
    spoilt = Campaign(correct.engine, list(correct.groups.values()))
    group = correct.groups["greedy, 1 at once"]
    spoilt.answers[group.name] = Answers(group, {0: Generation(token_ids=[-1], finish_reason="length")})
    log = spoilt.log(group.name)
    assert (log.entries, log.broken[0][0]) == ((), 1)
    assert "greater than or equal to 0" in log.broken[0][1]
    assert Failure("timeout", "x").kind == "timeout"


@pytest.mark.parametrize(("bug", "verdict"), [("", Verdict.PASS), ("accepts everything", Verdict.FAIL)])
def test_without_a_target_the_control_is_the_other_sample(
    correct: Campaign, make_campaign: MakeCampaign, bug: str, verdict: Verdict
) -> None:
    engine = make_campaign(bug).engine
    prompts = list(dict.fromkeys(each.prompt_token_ids for each in correct.groups["greedy, 1 at once"].requests))
    groups = plan_twins(prompts, engine, seed=1, repeats=40)
    campaign = Campaign(engine, groups)

    def outputs(name: str) -> list[list[Sequence[int]]]:
        answers = campaign.ask(name)
        return [
            [
                g.token_ids
                for i, g in answers.generations.items()
                if answers.group.requests[i].prompt_token_ids == prompt
            ]
            for prompt in prompts
        ]

    assert judge_two_samples(outputs("twins"), outputs("plain twins"), alpha=1e-3).verdict is verdict
    greedy = [
        [each[0] for each in outputs(name)] for name in ("twin greedy", "plain twin greedy", "plain twin greedy again")
    ]
    same = judge_same_greedy(greedy[0], greedy[1], baseline_again=greedy[2]).verdict
    assert same is (Verdict.INCONCLUSIVE if bug else Verdict.PASS)
