"""Every way in which a check can end, and what it does to the run."""

from collections.abc import Callable
from typing import Any

import pytest

pytest_plugins = ["pytester"]

Source = Callable[..., str]


@pytest.mark.parametrize(
    ("verdicts", "code", "verdict"),
    [
        (["pass"], 0, "pass"),
        (["pass", "not_applicable"], 0, "pass"),
        (["pass", "fail", "error", "inconclusive"], 1, "fail"),
        (["pass", "error", "inconclusive"], 11, "incomplete"),
        (["pass", "inconclusive"], 10, "inconclusive"),
        (["not_applicable", "not_applicable"], 11, "incomplete"),
    ],
)
def test_exit_codes_follow_the_order(
    fake: Any, check_source: Source, verdicts: list[str], code: int, verdict: str
) -> None:
    fake.checks(*(check_source(f"test_{number}", each) for number, each in enumerate(verdicts)))
    outcome = fake.run()
    assert (outcome.exit_code, outcome.results["verdict"]) == (code, verdict)
    assert list(outcome.verdicts.values()) == verdicts
    assert f"exit code  {code}: {verdict}" in outcome.text


@pytest.mark.parametrize(("verdict", "code"), [("error", 0), ("inconclusive", 0), ("fail", 1)])
def test_a_check_that_is_not_required_can_only_fail_the_run(
    fake: Any, check_source: Source, verdict: str, code: int
) -> None:
    fake.checks(check_source("test_a", "pass"), check_source("test_b", verdict, mark=", required=False"))
    assert fake.run().exit_code == code


def test_laws_that_were_not_judged_are_told_beside_the_verdict(fake: Any, check_source: Source) -> None:
    """A decoder most of whose randomness is out of sight passes, and no reader takes that for an exact law."""
    unseen = {"unit": "paths", "reason": "the decoder draws with float()"}
    fake.checks(
        check_source("test_a", "pass", unit="paths"),
        check_source("test_b", "not_applicable", **unseen),
        check_source("test_c", "not_applicable", **unseen),
        check_source("test_d", "not_applicable", reason="not claimed: grammar"),
    )
    outcome = fake.run()
    told = "2 of 3 exact laws were NOT judged (the decoder draws with float())"
    assert told in outcome.text
    assert told in (outcome.folder / "report.html").read_text(encoding="utf-8")
    assert told in (outcome.folder / "summary.md").read_text(encoding="utf-8")
    fake.checks(check_source("test_a", "pass", unit="paths"))
    assert "NOT judged" not in fake.run().text


def test_a_warning_is_no_verdict(fake: Any, check_source: Source) -> None:
    """Whatever pytest makes of warnings where the suite was started."""
    fake.checks(
        "\nimport warnings\n"
        + check_source("test_a", "pass").replace("    judge.", "    warnings.warn('old')\n    judge.")
    )
    assert fake.run().exit_code == 0


ENDINGS = """
def mark(**more):
    return check(**(dict(chapter=3, property="p", evidence=Evidence.BETTING) | more))

@mark()
def test_silent(judge):
    pass

@mark()
def test_without_judge():
    pass

@mark()
def test_twice(judge):
    judge.conclude(finding("pass"))
    judge.conclude(finding("pass"))

@mark()
def test_raises(judge):
    raise KeyError("lost")

@mark()
def test_raises_after_pass(judge):
    judge.conclude(finding("pass"))
    raise KeyError("lost")

@mark()
def test_raises_after_fail(judge):
    judge.conclude(finding("fail"))
    raise KeyError("lost")

@mark()
def test_contract(judge):
    raise ContractViolation("expected 3 generations, observed 2", details={"asked": 3})

@mark()
def test_absent(judge):
    raise NotApplicable("no streaming claimed")

@mark()
def test_vacuous(judge):
    judge.conclude(finding("pass", observations=0))

@mark()
def test_spends_its_share(judge):
    judge.conclude(finding("fail", false_alarm=judge.alpha))

@mark()
def test_overspends(judge):
    judge.conclude(finding("fail", false_alarm=2 * judge.alpha))

@mark(evidence=Evidence.EXACT)
def test_exact_has_no_budget(judge):
    judge.conclude(finding("fail", false_alarm=1e-12))

@mark()
def test_waives_itself(judge):
    judge.conclude(finding("waived"))

@mark()
def test_skips(judge):
    pytest.skip("no time")

@pytest.mark.skip(reason="not today")
@mark()
def test_marked_skip(judge):
    judge.conclude(finding("pass"))

@pytest.mark.xfail(reason="pytest's own")
@mark()
def test_marked_xfail(judge):
    judge.conclude(finding("fail"))

@pytest.mark.xfail(reason="pytest's own")
@mark()
def test_imperative_xfail(judge):
    pytest.xfail("known")

@pytest.fixture
def broken_decoder():
    raise ContractViolation("generate raised ValueError")

@mark()
def test_contract_in_a_fixture(judge, broken_decoder):
    judge.conclude(finding("pass"))

@pytest.fixture
def broken_teardown():
    yield
    raise OSError("disk")

@mark()
def test_teardown(judge, broken_teardown):
    judge.conclude(finding("pass"))

@pytest.mark.parametrize("case", [])
@mark()
def test_no_cases(judge, case):
    judge.conclude(finding("pass"))

@mark()
def test_bad_picture(judge):
    judge.conclude(finding("pass", details={"pictures": [{"kind": "law", "title": "t"}], "worst": float("inf")}))
"""

EXPECTED = {
    "test_silent": ("error", "concluded nothing"),
    "test_without_judge": ("error", "concluded nothing"),
    "test_twice": ("error", "concludes once"),
    "test_raises": ("error", "KeyError in call"),
    "test_raises_after_pass": ("error", "KeyError in call"),
    "test_raises_after_fail": ("fail", "said fail"),
    "test_contract": ("fail", "expected 3 generations, observed 2"),
    "test_absent": ("not_applicable", "no streaming claimed"),
    "test_vacuous": ("error", "vacuous"),
    "test_spends_its_share": ("fail", "said fail"),
    "test_overspends": ("error", "exceeds this check's share"),
    "test_exact_has_no_budget": ("error", "exceeds this check's share 0"),
    "test_waives_itself": ("error", "only --xfails waives"),
    "test_skips": ("error", "skipped (no time)"),
    "test_marked_skip": ("error", "not today"),
    "test_marked_xfail": ("fail", "said fail"),
    "test_imperative_xfail": ("error", "known"),
    "test_contract_in_a_fixture": ("fail", "generate raised ValueError"),
    "test_teardown": ("error", "OSError in teardown"),
    "test_no_cases[case0]": ("error", "skipped"),
    "test_bad_picture": ("pass", "said pass"),
}


def test_every_ending_has_its_verdict(fake: Any) -> None:
    fake.checks(ENDINGS)
    outcome = fake.run()
    assert outcome.exit_code == 1
    observed = outcome.checks
    assert {name: each["verdict"] for name, each in observed.items()} == {
        name.replace("[case0]", "[NOTSET]") if name not in observed else name: verdict
        for name, (verdict, _) in EXPECTED.items()
    }
    for name, (_, words) in EXPECTED.items():
        found = observed.get(name) or observed[name.replace("[case0]", "[NOTSET]")]
        assert words in found["reason"]
    assert observed["test_contract"]["evidence"] == "contract"
    assert observed["test_contract"]["details"]["data"] == {"asked": 3}
    assert "lost" in observed["test_raises"]["details"]["traceback"]
    assert "broken_pictures" in observed["test_bad_picture"]["details"]["data"]
    assert observed["test_bad_picture"]["details"]["data"]["worst"] == "Infinity"
    assert outcome.not_verified("not_applicable") == ["suite/test_fake.py::test_absent"]


def test_a_failure_is_told_to_a_person(fake: Any, check_source: Source) -> None:
    more = {
        "diagnosis": "residual not subtracted, 900 to 1",
        "details": {"minimal_case": {"prompt": [1], "position": 2}},
        "reason": "expected 0.7, observed 0.85",
    }
    fake.checks(check_source("test_law", "fail", **more), check_source("test_other", "inconclusive"))
    text = fake.run("--seed", "5").text
    for words in (
        "property of test_law (chapter 2: Exact law)",
        "expected 0.7, observed 0.85",
        "residual not subtracted, 900 to 1",
        '{"prompt": [1], "position": 2}',
        "reproduce     pytest suite/test_fake.py::test_law --decoder my_adapter:make_decoder --seed 5 --allow-partial",
        "1 inconclusive",
        "FAIL my_adapter:make_decoder: 1 check failed",
    ):
        assert words in text
    assert "Traceback" not in text
    assert "AssertionError" not in text


def test_a_second_run_of_a_check_cannot_improve_its_verdict(fake: Any) -> None:
    """What a rerun plugin does: the failure stays."""
    fake.write(
        {
            "suite/conftest.py": """
from _pytest.runner import runtestprotocol

def pytest_runtest_protocol(item, nextitem):
    for attempt in range(2):
        item.stash._storage.clear()
        for report in runtestprotocol(item, nextitem=nextitem, log=False):
            item.ihook.pytest_runtest_logreport(report=report)
    return True
"""
        }
    )
    fake.checks(
        """
TRIES = []

@check(chapter=1, property="p", evidence=Evidence.EXACT)
def test_flaky(judge):
    TRIES.append(1)
    judge.conclude(finding("pass" if len(TRIES) > 1 else "fail"))
"""
    )
    outcome = fake.run()
    assert (outcome.exit_code, outcome.verdicts) == (1, {"test_flaky": "fail"})


def test_a_failing_test_that_is_no_check_is_not_swallowed(fake: Any, check_source: Source) -> None:
    fake.checks(check_source("test_a", "pass"), "\ndef test_plain():\n    assert False\n")
    outcome = fake.run()
    assert (outcome.exit_code, outcome.results["verdict"]) == (1, "pass")
    assert "a test that is not a check of this suite failed" in outcome.text


def test_the_short_summary_does_not_say_it_again(fake: Any, check_source: Source) -> None:
    fake.checks(check_source("test_a", "fail"), check_source("test_b", "error"))
    text = fake.run().text
    assert "short test summary" not in text
    assert text.count("FAIL: said fail") == 1
    fake.write({"suite/test_other.py": "def test_plain():\n    assert False\n"})
    assert "FAILED suite/test_other.py::test_plain" in fake.run().text
