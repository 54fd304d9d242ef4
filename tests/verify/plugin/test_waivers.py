"""Expected failures: named, with a reason, and still true."""

from collections.abc import Callable
from typing import Any

import pytest

from verify.waivers import Waiver

pytest_plugins = ["pytester"]

Source = Callable[..., str]


def entry(pattern: str, reason: str = "issue 12") -> str:
    return f'[[xfail]]\nid = "{pattern}"\nreason = "{reason}"\n'


def test_a_known_failure_is_waived_and_listed(fake: Any, check_source: Source) -> None:
    fake.checks(check_source("test_a", "pass"), check_source("test_b", "fail", reason="one token too many"))
    fake.write({"known.toml": entry("*::test_b")})
    outcome = fake.run("--xfails", "known.toml")
    assert (outcome.exit_code, outcome.verdicts) == (0, {"test_a": "pass", "test_b": "waived"})
    assert outcome.results["waived"] == [
        {
            "id": "suite/test_fake.py::test_b",
            "pattern": "*::test_b",
            "reason": "issue 12",
            "failure": "one token too many",
        }
    ]
    assert "1 failure waived" in outcome.text
    assert "--xfails" not in outcome.checks["test_b"]["details"]["command"]


def test_a_stale_waiver_fails(fake: Any, check_source: Source) -> None:
    fake.checks(check_source("test_a", "pass"), check_source("test_b", "fail"))
    fake.write({"known.toml": entry("suite/test_fake.py::test_?")})
    outcome = fake.run("--xfails", "known.toml")
    assert (outcome.exit_code, outcome.verdicts) == (1, {"test_a": "fail", "test_b": "waived"})
    assert "stale waiver" in outcome.checks["test_a"]["reason"]


@pytest.mark.parametrize("verdict", ["error", "inconclusive"])
def test_only_failures_are_waived(fake: Any, check_source: Source, verdict: str) -> None:
    fake.checks(check_source("test_a", verdict))
    fake.write({"known.toml": entry("*")})
    assert fake.run("--xfails", "known.toml").verdicts == {"test_a": verdict}


def test_nothing_but_waived_failures_is_no_pass(fake: Any, check_source: Source) -> None:
    fake.checks(check_source("test_a", "fail"))
    fake.write({"known.toml": entry("*")})
    assert fake.run("--xfails", "known.toml").exit_code == 11


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[[xfail]]\nid = "*"\n', "exactly `id` and `reason`"),
        (entry("*", " "), "non-empty string"),
        ("[[xfail", "is not TOML"),
        ('xfial = "*"\n', "only [[xfail]] tables"),
        (entry("suite/test_fake.py::test_bb"), "did you mean 'suite/test_fake.py::test_b'?"),
    ],
)
def test_a_wrong_file_is_a_usage_error(fake: Any, check_source: Source, text: str, words: str) -> None:
    fake.checks(check_source("test_b", "fail"))
    fake.write({"known.toml": text})
    outcome = fake.run("--xfails", "known.toml")
    assert outcome.exit_code == 4
    assert words in outcome.text


def test_brackets_stand_for_themselves() -> None:
    waiver = Waiver(id="a.py::test_x[chain-*]", reason="r")
    assert waiver.matches("a.py::test_x[chain-3]")
    assert not waiver.matches("a.py::test_xc")
    assert not waiver.matches("aXpy::test_x[chain-3]")
