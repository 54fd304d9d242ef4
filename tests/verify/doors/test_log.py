"""The judges of a log: a sound one passes, each planted fault is seen by the check it belongs to."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jsonschema
import pytest

from verify.checks import sampled_law
from verify.checks.log_audit import Audit
from verify.checks.log_contract import judge_contract, judge_readable, judge_records, judge_speculation_shown
from verify.checks.log_law import judge_fresh, judge_greedy, judge_logged_logprobs, judge_reproduced, judge_sampled
from verify.judge import NotApplicable
from verify.log.line import SCHEMA_FILE, schema_text
from verify.results import Finding, Verdict

ALPHA = 1e-7
Lines = list[dict[str, Any]]
MakeAudit = Callable[[list[Any]], Audit]


def greedy_line(lines: Lines) -> dict[str, Any]:
    return next(each for each in lines if each["sampling"]["temperature"] == 0)


def sampled_line(lines: Lines) -> dict[str, Any]:
    return next(each for each in lines if each["sampling"]["temperature"] != 0)


def test_the_committed_schema_is_that_of_the_code(lines: Lines) -> None:
    assert SCHEMA_FILE.read_text() == schema_text(), "run `python -m verify.log.line`"
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA_FILE.read_text()))
    validator.validate(lines[0])
    del lines[0]["sampling"]["temperature"]
    assert not validator.is_valid(lines[0])


def test_a_sound_log_passes(audit: MakeAudit, lines: Lines) -> None:
    audited = audit(lines)
    judges: list[Callable[[Audit], Finding]] = [
        judge_readable,
        judge_contract,
        judge_greedy,
        judge_logged_logprobs,
        judge_records,
        judge_speculation_shown,
        lambda each: judge_sampled(each, alpha=ALPHA),
    ]
    for judge in judges:
        finding = judge(audited)
        assert finding.verdict is Verdict.PASS, finding.reason
        assert finding.observations > 0


def test_a_wrong_temperature_is_seen(audit: MakeAudit, lines: Lines) -> None:
    for each in lines:
        if each["sampling"]["temperature"] == 1:
            each["sampling"]["temperature"] = 0.5
    finding = judge_sampled(audit(lines), alpha=ALPHA)
    assert finding.verdict is Verdict.FAIL
    assert any(word in finding.diagnosis for word in ("temperature", "flattened", "sharp"))


def test_an_ignored_top_k_is_seen(audit: MakeAudit, lines: Lines) -> None:
    for each in lines:
        if each["sampling"]["temperature"] == 1:
            each["sampling"]["top_k"] = 5
    finding = judge_sampled(audit(lines), alpha=ALPHA)
    assert finding.verdict is Verdict.FAIL
    told = re.match(r"line (\d+): token (\d+) was emitted although the target gives it probability 0", finding.reason)
    assert told is not None
    number, token_id = map(int, told.groups())
    assert lines[number - 1]["sampling"]["top_k"] == 5
    assert token_id in lines[number - 1]["token_ids"]


def test_one_altered_greedy_token_is_seen(audit: MakeAudit, lines: Lines) -> None:
    chosen = greedy_line(lines)
    chosen["token_ids"][7] = (chosen["token_ids"][7] + 1) % 1024
    finding = judge_greedy(audit(lines))
    assert finding.verdict is Verdict.FAIL
    assert finding.reason.startswith("line 1: ")
    assert "output position 7" in finding.reason


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda line: line | {"stop_token_ids": [line["token_ids"][3]], "finish_reason": None},
            "tokens follow the stop",
        ),
        (lambda line: line | {"max_new_tokens": 5}, "where max_new_tokens is 5"),
        (lambda line: line | {"max_new_tokens": 99}, "the output ended too early"),
        (lambda line: line | {"finish_reason": "stop"}, "no stop token was emitted"),
        (lambda line: line | {"token_ids": [*line["token_ids"][:-1], 5000]}, "token id 5000 is not in the target's"),
        (lambda line: line | {"logprobs": line["logprobs"][1:]}, "23 logprobs for 24 tokens"),
    ],
)
def test_a_broken_contract_is_seen_with_its_line(
    audit: MakeAudit, lines: Lines, spoil: Callable[[dict[str, Any]], dict[str, Any]], words: str
) -> None:
    lines[4] = spoil(lines[4])
    finding = judge_contract(audit(lines))
    assert finding.verdict is Verdict.FAIL
    assert finding.reason.startswith("line 5: ")
    assert words in finding.reason


def test_a_shifted_logprob_is_seen(audit: MakeAudit, lines: Lines) -> None:
    chosen = sampled_line(lines)
    chosen["logprobs"] = chosen["logprobs"][1:] + chosen["logprobs"][:1]
    finding = judge_logged_logprobs(audit(lines))
    assert finding.verdict is Verdict.FAIL
    assert finding.reason.startswith("line 9: logprob of token")


def test_a_record_that_does_not_add_up_is_seen(audit: MakeAudit, lines: Lines) -> None:
    lines[2]["record"]["num_accepted_draft_tokens"] += 1
    assert "line 3: acceptance_histogram stands for" in judge_records(audit(lines)).reason
    lines[2]["record"] = {
        "num_spec_steps": 2,
        "num_draft_tokens": 6,
        "num_accepted_draft_tokens": 6,
        "acceptance_histogram": [0, 0, 0, 2],
    }
    finding = judge_records(audit(lines))
    assert finding.verdict is Verdict.FAIL
    assert "cannot emit 24" in finding.reason


def test_broken_lines_are_an_error_and_the_rest_is_judged(audit: MakeAudit, lines: Lines) -> None:
    misspelt = lines[1] | {"sampling": {"temprature": 1.0}}
    foreign = lines[2] | {"prompt_token_ids": [5000]}
    other = lines[3] | {"engine": "another"}
    kept = json.dumps(lines[0]) + "\n"
    broken = [kept, misspelt, "\n", foreign, other, *lines[4:], json.dumps(lines[5])[:200]]
    audited = audit(broken)
    finding = judge_readable(audited)
    assert finding.verdict is Verdict.ERROR
    for words in (
        "4 of 57 lines cannot be judged",
        "line 2: sampling.temperature: Field required (and 1 more)",
        "line 4: token id 5000 in the request is not in the target's vocabulary of 1024; is --target the engine's model?",
        "line 5: engine: 'another' after 'dspark 0.1'",
        "line 58: no JSON",
    ):
        assert words in finding.reason
    assert judge_greedy(audited).observations == 24 * 5
    assert judge_readable(audit([])).verdict is Verdict.ERROR
    alike = judge_readable(audit([misspelt, misspelt, misspelt]))
    assert "line 1 and 2 more: sampling.temperature: Field required" in alike.reason


def test_the_same_seed_is_the_same_evidence(audit: MakeAudit, lines: Lines) -> None:
    repeated = [*lines, *lines, *lines]
    audited = audit(repeated)
    once = judge_sampled(audit(lines), alpha=ALPHA)
    finding = judge_sampled(audited, alpha=ALPHA)
    assert (finding.observations, finding.details["dependent_lines_left_out"]) == (once.observations, 96)
    assert judge_reproduced(audited).verdict is Verdict.PASS
    for each in lines:
        each["seed"] = 0 if each["seed"] is not None else None
    shared = judge_sampled(audit(lines), alpha=ALPHA)
    assert shared.verdict is Verdict.INCONCLUSIVE  # one stream for all prompts: one line's worth of evidence
    assert "47 of 48 lines" in shared.reason


def test_another_output_for_one_seed_is_seen(audit: MakeAudit, lines: Lines) -> None:
    seeded = [each for each in lines if each["sampling"]["temperature"] != 0 and each["seed"] is not None][:4]
    others = [each | {"token_ids": each["token_ids"][::-1]} for each in seeded]
    audited = audit([*lines, *others])
    finding = judge_reproduced(audited)
    assert finding.verdict is Verdict.FAIL
    assert "lines 9 and 57 ask the same with seed 0" in finding.reason
    assert "as do 4 of 4 repeated requests" in finding.reason
    audited._noise = replace(audited.noise, max_total_variation=0.02)  # as bfloat16 has it
    finding = judge_reproduced(audited)
    assert finding.verdict is Verdict.INCONCLUSIVE
    assert "rounding may have moved so many coins" in finding.reason
    with pytest.raises(NotApplicable):
        judge_reproduced(audit(lines))


def test_copies_without_a_seed_are_seen_and_count_once(audit: MakeAudit, lines: Lines) -> None:
    for each in lines:
        each["seed"] = None
    with pytest.raises(NotApplicable):
        judge_fresh(audit(lines), alpha=ALPHA)
    audited = audit([*lines, *lines])
    finding = judge_fresh(audited, alpha=ALPHA)
    assert finding.verdict is Verdict.FAIL
    assert "lines 9 and 65 hold the same 24 tokens without a seed" in finding.reason
    assert judge_sampled(audited, alpha=ALPHA).observations == judge_sampled(audit(lines), alpha=ALPHA).observations
    short = [each | {"token_ids": each["token_ids"][:1], "max_new_tokens": 1, "seed": None} for each in lines[8:9] * 3]
    for each in short:  # one token may well come again
        each.update(logprobs=None, roles=None, record=None, finish_reason=None)
    assert judge_fresh(audit(short), alpha=1e-9).verdict is Verdict.PASS


def test_no_sign_of_speculation_is_inconclusive(audit: MakeAudit, lines: Lines) -> None:
    plain = [each | {"record": None, "roles": None} for each in lines]
    finding = judge_speculation_shown(audit(plain))
    assert finding.verdict is Verdict.INCONCLUSIVE
    assert "greedy lines show no accepted draft" in finding.reason
    with pytest.raises(NotApplicable):
        judge_records(audit(plain))
    by_roles = judge_speculation_shown(audit([each | {"record": None} for each in lines]))
    assert by_roles.verdict is Verdict.PASS


def test_settings_of_their_own_that_come_late(audit: MakeAudit, lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sampled_law, "MAX_MOMENT_ELEMENTS", 64 * 1024
    )  # so few lines fill it that none with top-k is left
    late = sorted(lines, key=lambda each: each["sampling"]["top_k"])
    finding = judge_sampled(audit(late), alpha=ALPHA)
    assert finding.verdict is Verdict.PASS, finding.reason
    assert {"no_truncation", "bonus_unprocessed"} <= finding.details["leak_upper_bounds"].keys()


def test_roles_that_are_not_one_a_token_fail_once(audit: MakeAudit, lines: Lines) -> None:
    sampled_line(lines)["roles"].pop()
    audited = audit(lines)
    assert judge_contract(audited).verdict is Verdict.FAIL
    assert judge_sampled(audited, alpha=ALPHA).verdict is Verdict.PASS


@pytest.mark.parametrize(
    "settings",
    [
        {"allowed_token_ids": []},
        {"allowed_token_ids": [3, 4], "forbidden_token_ids": [3], "logit_bias": {"4": -math.inf}},
        {"forbidden_token_ids": list(range(1024))},
    ],
)
def test_a_request_that_leaves_no_token_is_a_broken_line(
    audit: MakeAudit, lines: Lines, settings: dict[str, Any]
) -> None:
    for chosen in (greedy_line(lines), sampled_line(lines)):
        chosen["sampling"] |= settings
    audited = audit(lines)
    finding = judge_readable(audited)
    assert finding.verdict is Verdict.ERROR
    assert "every token is banned by the settings" in finding.reason
    assert judge_greedy(audited).verdict is Verdict.PASS
    assert judge_sampled(audited, alpha=ALPHA).verdict is Verdict.PASS
