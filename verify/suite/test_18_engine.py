"""Chapter 18: an engine that is no Python object here, asked a campaign of requests and audited like a log."""

from collections.abc import Sequence

import pytest

from verify.checks.engine import engine_noise, judge_answered, judge_control, judge_same_outputs, judge_speculates
from verify.checks.engine_streaming import judge_engine_streams
from verify.checks.log_audit import Audit
from verify.checks.log_contract import judge_contract, judge_records
from verify.checks.log_law import judge_fresh, judge_greedy, judge_logged_logprobs, judge_reproduced, judge_sampled
from verify.checks.two_sample import judge_same_greedy, judge_two_samples
from verify.engines.campaign import Answers, Campaign
from verify.judge import Judge, NotApplicable, check
from verify.results import Evidence
from verify.suite.engines import SETTINGS, campaign_of, has_target, with_lines
from verify.suite.support import trained_subject

NOISE = "noise floor of the engine"
STREAMED = "greedy, 1 at once"
NUM_STREAMS = 16
LEVELS = ("lowest", "middle", "highest")


def audited(judge: Judge, *names: str) -> Audit:
    """The answers to groups, against the target; `NotApplicable` where the engine was not asked, or has no plain mode."""
    campaign = campaign_against_target(judge)
    if NOISE not in judge.shared:
        judge.shared[NOISE] = None
        if "plain logprobs" in campaign.groups and not campaign.ask("plain logprobs").no_control:
            plain = Audit(trained_subject(judge), campaign.log("plain logprobs"))
            judge.shared[NOISE] = engine_noise(plain) if plain.lines else None
    asked(campaign, *names)
    return Audit(trained_subject(judge), campaign.log(*names), noise=judge.shared[NOISE])


def campaign_against_target(judge: Judge) -> Campaign:
    """The campaign; `NotApplicable` where the target is not at hand."""
    campaign = campaign_of(judge)
    if not has_target(judge.options):
        raise NotApplicable("no --target: the server is compared with its baseline only")
    return campaign


def asked(campaign: Campaign, *names: str) -> list[Answers]:
    """The answers to groups; `NotApplicable` as in `audited`."""
    missing = [name for name in names if name not in campaign.groups]
    if missing:
        raise NotApplicable(f"the engine does not claim what {missing[0]!r} needs")
    answers = [campaign.ask(name) for name in names]
    reasons = [each.no_control for each in answers if each.no_control]
    if reasons:
        raise NotApplicable(reasons[0])
    return answers


def asked_at_once(judge: Judge, kind: str, which: str) -> str:
    """The name of the group of a kind at one of `LEVELS` of the engine's concurrency."""
    levels = list(campaign_of(judge).engine.concurrency)
    if LEVELS.index(which) >= len(levels):
        raise NotApplicable(f"the engine answers {', '.join(map(str, levels))} requests at once")
    return f"{kind}, {levels[LEVELS.index(which)]} at once"


@check(chapter=18, property="greedy identity of the engine without speculation", evidence=Evidence.GREEDY)
def test_plain_greedy(judge: Judge) -> None:
    """The control: what fails here is not the speculation's fault, but the weights', the precision's, or the sampler's."""
    judge.conclude(judge_greedy(audited(judge, "plain greedy")))


@check(chapter=18, property="sampled law of the engine without speculation", evidence=Evidence.BETTING)
def test_plain_sampled(judge: Judge) -> None:
    """The control of the sampled law."""
    judge.conclude(judge_sampled(audited(judge, "plain sampled"), alpha=judge.alpha))


@check(chapter=18, property="greedy identity of the engine", evidence=Evidence.GREEDY)
@pytest.mark.parametrize("concurrency", LEVELS)
def test_greedy(judge: Judge, concurrency: str) -> None:
    """Every greedy token is the target's arg max, or a near tie below the measured noise, however many are asked at once."""
    judge.conclude(judge_greedy(audited(judge, asked_at_once(judge, "greedy", concurrency))))


@check(chapter=18, property="sampled law of the engine", evidence=Evidence.BETTING)
@pytest.mark.parametrize("concurrency", LEVELS)
def test_sampled(judge: Judge, concurrency: str) -> None:
    """Sampled tokens follow the target's law, however many are asked at once."""
    judge.conclude(judge_sampled(audited(judge, asked_at_once(judge, "sampled", concurrency)), alpha=judge.alpha))


@check(chapter=18, property="sampled law of the engine at low temperature", evidence=Evidence.BETTING)
def test_cold(judge: Judge) -> None:
    """Where more drafts are accepted."""
    judge.conclude(judge_sampled(audited(judge, "sampled, temperature 0.6"), alpha=judge.alpha))


@check(chapter=18, property="mixed requests at once: sampled law", evidence=Evidence.BETTING)
def test_mixed_sampled(judge: Judge) -> None:
    """Sampled requests among greedy ones."""
    judge.conclude(judge_sampled(audited(judge, "mixed"), alpha=judge.alpha))


@check(chapter=18, property="mixed requests at once: greedy identity", evidence=Evidence.GREEDY)
def test_mixed_greedy(judge: Judge) -> None:
    """Greedy requests among sampled ones."""
    judge.conclude(judge_greedy(audited(judge, "mixed")))


@check(chapter=18, property="sampled law of the engine's processors", evidence=Evidence.BETTING)
@pytest.mark.parametrize("name", SETTINGS)
def test_processors_sampled(judge: Judge, name: str) -> None:
    """Each setting that the engine claims, in the documented order: an engine with another one by design has to be told."""
    judge.conclude(judge_sampled(audited(judge, name), alpha=judge.alpha))


@check(chapter=18, property="greedy identity under the engine's processors", evidence=Evidence.GREEDY)
@pytest.mark.parametrize("name", [name for name in SETTINGS if name not in ("top_k", "top_p", "min_p")])
def test_processors_greedy(judge: Judge, name: str) -> None:
    """Settings that change the arg max."""
    judge.conclude(judge_greedy(audited(judge, name)))


@check(chapter=18, property="min_new_tokens", evidence=Evidence.BETTING)
def test_min_new_tokens(judge: Judge) -> None:
    """No stop token before its time, and the law of the others."""
    judge.conclude(judge_sampled(audited(judge, "min_new_tokens"), alpha=judge.alpha))


@check(chapter=18, property="greedy identity under min_new_tokens", evidence=Evidence.GREEDY)
def test_min_new_tokens_greedy(judge: Judge) -> None:
    """Stop tokens are banned up to the minimum and no further: at the bonus token's position too."""
    judge.conclude(judge_greedy(audited(judge, "min_new_tokens")))


@check(chapter=18, property="law and stops of short outputs", evidence=Evidence.BETTING)
def test_stopping(judge: Judge) -> None:
    """Stop tokens and limits that fall inside a block leave the law of what comes before them alone."""
    judge.conclude(judge_sampled(audited(judge, "stopping"), alpha=judge.alpha))


@check(chapter=18, property="greedy identity of short outputs", evidence=Evidence.GREEDY)
def test_stopping_greedy(judge: Judge) -> None:
    """The token at the limit, and what stands before a stop, are the target's too."""
    judge.conclude(judge_greedy(audited(judge, "stopping")))


@check(chapter=18, property="seeds reproduce", evidence=Evidence.CONTRACT)
def test_seeds(judge: Judge) -> None:
    """The same request with the same seed has one output."""
    judge.conclude(judge_reproduced(audited(judge, "seeds")))


@check(chapter=18, property="seeds do not see other requests", evidence=Evidence.CONTRACT)
def test_seeds_at_once(judge: Judge) -> None:
    """A seed gives the same output alone and among others."""
    judge.conclude(
        judge_same_outputs(
            *asked(campaign_against_target(judge), "seeds", "seeds at once"),
            audit=audited(judge, "seeds", "seeds at once"),
            claim="a seed belongs to its request",
            diagnosis="requests share a stream of random numbers (RNG), or rounding moved a coin: look at the first position",
        )
    )


@check(chapter=18, property="the same seed gives the same output without speculation", evidence=Evidence.CONTRACT)
def test_same_seed_without_speculation(judge: Judge) -> None:
    """Where the engine claims it: far sharper than any test of a distribution."""
    if not campaign_of(judge).engine.same_seed_same_output:
        raise NotApplicable("the engine does not claim that a seed gives one sequence with and without speculation")
    judge.conclude(
        judge_same_outputs(
            *asked(campaign_against_target(judge), "seeds", "plain seeds"),
            audit=audited(judge, "seeds", "plain seeds"),
            claim="a seed gives one sequence",
            diagnosis="speculation changes which token a coin chooses (ACC, RES, BON), or rounding moved one",
        )
    )


@check(chapter=18, property="outputs without a seed are fresh", evidence=Evidence.BETTING)
def test_fresh(judge: Judge) -> None:
    """The same request without a seed has outputs of its own each time."""
    judge.conclude(judge_fresh(audited(judge, "fresh"), alpha=judge.alpha))


@check(chapter=18, property="sampled law of outputs without a seed", evidence=Evidence.BETTING)
def test_fresh_sampled(judge: Judge) -> None:
    """Without a seed another sampler may be at work."""
    judge.conclude(judge_sampled(audited(judge, "fresh"), alpha=judge.alpha))


@check(chapter=18, property="the engine's logprobs", evidence=Evidence.CONTRACT)
def test_logprobs(judge: Judge) -> None:
    """Log-probabilities are the target's at the emitted token."""
    audit = audited(judge, "logprobs")
    if not audit.subject.capabilities.logprobs:
        raise NotApplicable("the engine claims no log-probabilities")
    judge.conclude(judge_logged_logprobs(audit))


def twins(judge: Judge, *names: str) -> list[list[list[Sequence[int]]]]:
    """For each group the outputs of each prompt, in the order asked; `NotApplicable` where the target is at hand."""
    campaign = campaign_of(judge)
    if has_target(judge.options):
        raise NotApplicable("--target is at hand, and its probabilities are sharper than a second sample")
    outputs: list[list[list[Sequence[int]]]] = []
    for answers in asked(campaign, *names):
        by_prompt: dict[tuple[int, ...], list[Sequence[int]]] = {}
        for index, each in enumerate(answers.group.requests):
            here = by_prompt.setdefault(each.prompt_token_ids, [])
            here += [answers.generations[index].token_ids] if index in answers.generations else []
        outputs.append(list(by_prompt.values()))
    return outputs


@check(chapter=18, property="sampled outputs against the baseline server", evidence=Evidence.TWO_SAMPLE)
def test_against_baseline_sampled(judge: Judge) -> None:
    """Without a target: outputs with speculation and without have one law."""
    ours, baseline = twins(judge, "twins", "plain twins")
    judge.conclude(judge_two_samples(ours, baseline, alpha=judge.alpha))


@check(chapter=18, property="greedy outputs against the baseline server", evidence=Evidence.GREEDY)
def test_against_baseline_greedy(judge: Judge) -> None:
    """Without a target: greedy outputs with speculation and without are the same, where the baseline agrees with itself."""
    groups = twins(judge, "twin greedy", "plain twin greedy", "plain twin greedy again")
    complete = [rows for rows in zip(*groups, strict=True) if all(rows)]
    ours, baseline, again = ([rows[side][0] for rows in complete] for side in range(3))
    judge.conclude(judge_same_greedy(ours, baseline, baseline_again=again))


def all_groups(campaign: Campaign) -> list[str]:
    """Groups that the engine can answer."""
    return [name for name in campaign.groups if not campaign.ask(name).no_control]


@check(chapter=18, property="stopping and lengths of the engine", evidence=Evidence.CONTRACT)
def test_contract(judge: Judge) -> None:
    """Nothing follows a stop token, lengths and finish reasons are right, every id is the target's, in every answer."""
    judge.conclude(judge_contract(audited(judge, *all_groups(campaign_of(judge)))))


@check(chapter=18, property="the engine's records", evidence=Evidence.CONTRACT)
def test_records(judge: Judge) -> None:
    """Acceptance records add up, and agree with the number of emitted tokens."""
    judge.conclude(judge_records(audited(judge, *all_groups(campaign_of(judge)))))


@check(chapter=18, property="the engine speculates", evidence=Evidence.CONTRACT)
def test_speculation(judge: Judge) -> None:
    """Its own counts show accepted and rejected drafts: else plain decoding would pass for speculation."""
    campaign = campaign_of(judge)
    names = [name for name in all_groups(campaign) if not campaign.groups[name].plain]
    judge.conclude(judge_speculates([campaign.ask(name) for name in names]))


@check(chapter=18, property="the control does not speculate", evidence=Evidence.CONTRACT)
def test_control(judge: Judge) -> None:
    """Where no speculation was asked for there are no drafts: else what is called the control is the engine under test."""
    campaign = campaign_of(judge)
    plain = [name for name in campaign.groups if campaign.groups[name].plain]
    judge.conclude(judge_control([campaign.ask(name) for name in plain]))


@check(chapter=18, property="the engine's streams", evidence=Evidence.CONTRACT)
def test_streams(judge: Judge) -> None:
    """A stream's chunks are the answer that comes whole, also after a stream that the client has left."""
    audit = audited(judge, STREAMED)
    campaign = campaign_of(judge)
    stream = getattr(campaign.engine, "stream", None)
    if not audit.subject.capabilities.streaming or stream is None:
        raise NotApplicable("the engine claims no streaming")
    answers = campaign.ask(STREAMED)
    chosen = sorted(answers.generations.items())[:NUM_STREAMS]
    judge.conclude(judge_engine_streams(stream, [(answers.group.requests[index], answer) for index, answer in chosen]))


@check(chapter=18, property="every request is answered", evidence=Evidence.CONTRACT)
def test_answered(judge: Judge) -> None:
    """An engine that refuses, fails, falls silent or dies is an error, and no run passes with it."""
    campaign = campaign_of(judge)
    finding = judge_answered([campaign.ask(name) for name in campaign.groups])
    judge.conclude(with_lines(finding, campaign))
