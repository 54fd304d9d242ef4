"""What runs, what did not, and that neither can be hidden."""

import shlex
from collections.abc import Callable
from typing import Any

import pytest

from verify.doors import DOORS
from verify.manifest import read_manifest
from verify.options import OWN_SUITE

pytest_plugins = ["pytester"]

Source = Callable[..., str]

CASES = """
@pytest.mark.parametrize("case", ["a b", "c"])
@check(chapter=2, property="cases", evidence=Evidence.BETTING)
def test_cases(judge, case):
    judge.conclude(finding("pass", details={"seed": judge.seed, "alpha": judge.alpha}))
"""


def test_a_selection_is_partial_and_no_pass_for_a_gate(fake: Any, check_source: Source) -> None:
    fake.checks(check_source("test_a", "pass"), check_source("test_b", "pass"))
    outcome = fake.run("-k", "test_a")
    assert (outcome.exit_code, outcome.results["verdict"]) == (11, "incomplete")
    assert outcome.not_verified("not_selected") == ["suite/test_fake.py::test_b"]
    assert "partial run" in outcome.text
    allowed = fake.run("-k", "test_a", "--allow-partial")
    assert (allowed.exit_code, allowed.results["verdict"]) == (0, "incomplete")
    assert "no verdict on the decoder" in allowed.text


@pytest.mark.parametrize(("verdict", "code"), [("fail", 1), ("error", 11), ("inconclusive", 10)])
def test_an_allowed_partial_run_exits_by_what_ran(fake: Any, check_source: Source, verdict: str, code: int) -> None:
    fake.checks(check_source("test_a", verdict), check_source("test_b", "pass"))
    assert fake.run("-k", "test_a", "--allow-partial").exit_code == code


def test_one_file_or_one_case_is_partial(fake: Any, check_source: Source) -> None:
    fake.checks(CASES, name="suite/test_one.py")
    assert fake.run("suite/test_one.py::test_cases[c]", suite="").exit_code == 11
    assert fake.run("suite/test_one.py", suite="").exit_code == 0
    fake.checks(check_source("test_b", "pass"), name="suite/test_two.py")
    outcome = fake.run("suite/test_one.py", suite="")
    assert (outcome.exit_code, outcome.not_verified("not_selected")) == (11, ["suite/test_two.py::test_b"])


def test_the_cases_that_failed_before_are_partial(fake: Any) -> None:
    ini = (fake.pytester.path / "pytest.ini").read_text(encoding="utf-8").replace("-p no:cacheprovider", "")
    fake.write({"pytest.ini": ini})
    fake.checks(CASES.replace('"pass"', '"fail" if case == "c" else "pass"'), name="suite/test_one.py")
    assert fake.run("--last-failed").exit_code == 1  # nothing failed before: all run
    assert not fake.run().not_verified("not_selected")
    fake.checks(CASES, name="suite/test_one.py")
    outcome = fake.run("--last-failed")
    assert list(outcome.verdicts.values()) == ["pass"]
    assert (outcome.exit_code, outcome.not_verified("not_selected")) == (11, ["--last-failed"])


@pytest.mark.parametrize(
    "conftest",
    [
        "def pytest_collection_modifyitems(items):\n    items[:] = [i for i in items if i.name != 'test_b']\n",
        "def pytest_pycollect_makeitem(name):\n    return [] if name == 'test_b' else None\n",
        "collect_ignore = ['test_more.py']\n",
        "def pytest_runtest_protocol(item):\n    return True if item.name == 'test_b' else None\n",
    ],
)
def test_a_check_dropped_by_someone_elses_hook_is_missed(fake: Any, check_source: Source, conftest: str) -> None:
    fake.write({"suite/conftest.py": conftest})
    fake.checks(check_source("test_a", "pass"), check_source("test_b", "pass"))
    fake.checks(check_source("test_b", "pass"), name="suite/test_more.py")
    outcome = fake.run()
    assert outcome.exit_code == 11
    missing = outcome.not_verified("not_selected") + outcome.not_verified("not_run")
    assert any(name.endswith("::test_b") for name in missing)


@pytest.mark.parametrize(
    ("source", "arguments"),
    [
        ("", []),
        (None, ["-k", "nothing_at_all"]),
        ("import no_such_module\n", []),
        ("import pytest\npytest.skip('no device', allow_module_level=True)\n", []),
        ("import pytest\npytestmark = pytest.mark.skip(reason='all')\n", []),
    ],
)
def test_nothing_judged_is_incomplete(
    fake: Any, check_source: Source, source: str | None, arguments: list[str]
) -> None:
    body = check_source("test_a", "pass")
    fake.checks(body if source is None or source else "", name="suite/test_fake.py")
    if source:
        path = fake.pytester.path / "suite" / "test_fake.py"
        path.write_text(path.read_text() + source)
    for more in ([], ["--allow-partial"]):
        outcome = fake.run(*arguments, *more)
        assert (outcome.exit_code, outcome.results["verdict"]) == (11, "incomplete")


def test_stopping_early_leaves_the_run_incomplete(fake: Any, check_source: Source) -> None:
    fake.checks(check_source("test_a", "error"), check_source("test_b", "pass"))
    outcome = fake.run("-x")
    assert outcome.exit_code == 11
    assert outcome.not_verified("not_run") == ["suite/test_fake.py::test_b"]


def test_a_module_that_cannot_be_imported_is_a_problem_of_the_run(fake: Any, check_source: Source) -> None:
    fake.checks(check_source("test_a", "pass"))
    fake.checks("import no_such_module\n", name="suite/test_bad.py")
    for arguments in ([], ["--continue-on-collection-errors", "--allow-partial"]):
        outcome = fake.run(*arguments)
        assert outcome.exit_code == 11
        assert outcome.not_verified("run")[0] == "suite/test_bad.py"
        assert "no_such_module" in outcome.text


def test_the_profile_decides_what_a_full_run_is(fake: Any, check_source: Source) -> None:
    fake.checks(
        check_source("test_a", "pass"),
        check_source("test_long", "fail", mark=', minimum_profile="exhaustive"'),
    )
    outcome = fake.run()
    assert (outcome.exit_code, outcome.verdicts) == (0, {"test_a": "pass"})
    assert outcome.not_verified("profile") == ["suite/test_fake.py::test_long"]
    assert fake.run("--profile", "exhaustive").exit_code == 1
    assert fake.run("-k", "test_long").exit_code == 11


def test_collecting_only_judges_nothing(fake: Any, check_source: Source) -> None:
    fake.checks(check_source("test_a", "pass"))
    outcome = fake.run("--collect-only")
    assert (outcome.exit_code, outcome.folder) == (0, None)


def test_the_budget_is_split_and_seeds_do_not_depend_on_the_selection(fake: Any, check_source: Source) -> None:
    fake.checks(CASES, check_source("test_exact", "pass"))
    whole = fake.run("--seed", "3", "--false-alarm", "0.02")
    part = fake.run("--seed", "3", "--false-alarm", "0.02", "-k", "c]")
    other = fake.run("--seed", "4", "--false-alarm", "0.02")
    name = "test_cases[c]"
    alphas = [each["details"]["alpha"] for each in whole.checks.values()]
    assert sorted(alphas) == [0.0, 0.01, 0.01]
    assert sum(alphas) <= 0.02
    assert part.checks[name]["details"]["data"] == whole.checks[name]["details"]["data"]
    seeds = {run.checks[case]["details"]["seed"] for run in (whole, other) for case in (name, "test_cases[a b]")}
    assert len(seeds) == 4
    assert "0.01 for each of 2 statistical checks" in whole.text


def test_the_printed_command_reproduces_the_failure(fake: Any, check_source: Source) -> None:
    """Same verdict, seed and share of the budget, from one check of many with awkward names."""
    fake.checks(CASES.replace('"pass"', '"fail"'), check_source("test_other", "pass"))
    whole = fake.run("--profile", "smoke", "--dtype", "float64")
    before = whole.checks["test_cases[a b]"]
    program, *arguments = shlex.split(before["details"]["command"])
    assert program == "pytest"
    again = fake.run(*arguments, decoder=False, suite="")
    assert (again.exit_code, list(again.verdicts)) == (1, ["test_cases[a b]"])
    after = again.checks["test_cases[a b]"]
    for key in ("seed", "alpha", "data"):
        assert after["details"][key] == before["details"][key]
    assert (again.results["profile"], again.results["dtype"]) == ("smoke", "float64")


def test_the_run_can_be_repeated_from_its_record(fake: Any, check_source: Source) -> None:
    fake.checks(CASES)
    first = fake.run()
    program, *arguments = shlex.split(first.results["command"])
    second = fake.run(*arguments, decoder=False, suite="")
    assert program == "pytest"
    assert second.results["seed"] == first.results["seed"]
    assert first.results["seed"] != fake.run().results["seed"]


@pytest.mark.skipif(not OWN_SUITE.is_dir(), reason="the suite is not there yet")
def test_the_manifest_of_the_real_suite_names_every_check_function() -> None:
    """A check that the manifest cannot read, because it is not a plain `@check(...)`, could be dropped unseen."""
    named = {
        entry.id.split("::", 1)[1]
        for door in DOORS
        for entry in read_manifest(OWN_SUITE, profile="exhaustive", door=door)
    }
    written = {
        line.removeprefix("def ").split("(")[0]
        for path in OWN_SUITE.rglob("test_*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("def test_")
    }
    assert named == written
