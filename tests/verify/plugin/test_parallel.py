"""With `pytest -n 2`: the same checks, seeds and verdicts, in one report; what cannot be had is refused."""

import gzip
import os
from collections.abc import Callable
from typing import Any

import pytest

from verify.budget import derive_seed

pytest.importorskip("xdist", reason="pytest-xdist is not installed")
pytest_plugins = ["pytester"]

Source = Callable[..., str]

DECODED = """
from types import SimpleNamespace as Some

@pytest.mark.parametrize("pair", ["one", "two"])
@check(chapter=1, property="p", evidence=Evidence.BETTING)
def test_decoded(judge, pair):
    judge.make_decoder(Some(name=pair, vocab_size=3, device="cpu", dtype="float64"))
    answer = Some(token_ids=[1], finish_reason="length")
    judge.log_generation(request={"prompt_token_ids": [0]}, generation=answer, models_name=pair)
    judge.conclude(finding("pass", details={"worst": float("inf")}, smallest_visible=0.1))

@check(chapter=3, property="p", evidence=Evidence.BETTING)
def test_contract(judge):
    raise ContractViolation("expected 3 generations, observed 2")
"""
CRASH = "    import os; os._exit(9)\n"
XFAILS = '[[xfail]]\nid = "suite/test_more.py::test_waived"\nreason = "known"\n'


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run does to OMP_NUM_THREADS ends with the test."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def crashing(source: str) -> str:
    return source.replace("    judge.conclude", f"{CRASH}    judge.conclude")


def comparable(results: dict[str, Any]) -> dict[str, Any]:
    """Without what differs between any two runs: times, and the command line."""
    for check in results["checks"]:
        del check["details"]["duration_s"]
    for name in ("started", "workers"):
        results["environment"].pop(name, None)
    return {name: value for name, value in results.items() if name not in ("duration_s", "command")}


def test_the_report_is_that_of_one_process(fake: Any, check_source: Source) -> None:
    verdicts = ("pass", "fail", "inconclusive", "not_applicable", "error")
    fake.checks(DECODED, *(check_source(f"test_{each}", each) for each in verdicts))
    fake.checks(
        check_source("test_waived", "fail"),
        check_source("test_slow", "pass", mark=', minimum_profile="default"'),
        name="suite/test_more.py",
    )
    fake.write({"xfails.toml": XFAILS})
    asked = ("--seed", "5", "--profile", "smoke", "--xfails", "xfails.toml")
    alone = fake.run(*asked)
    shared = fake.run(*asked, "-n", "2")
    assert (alone.exit_code, shared.exit_code) == (1, 1), shared.text
    assert shared.results["environment"]["workers"] == "2"
    assert comparable(alone.results) == comparable(shared.results)
    assert [each["name"] for each in shared.results["models"]] == ["one", "two"]
    assert len(shared.results["waived"]) == 1
    assert {path.name for path in shared.folder.iterdir()} == {path.name for path in alone.folder.iterdir()}
    logged = [
        sorted(gzip.decompress((outcome.folder / "generations.jsonl.gz").read_bytes()).splitlines())
        for outcome in (alone, shared)
    ]
    assert len(logged[0]) == 2
    assert logged[0] == logged[1]
    for words in (
        "FAIL suite/test_fake.py::test_fail",
        "reproduce     pytest suite/test_fake.py::test_fail",
        "exit code  1",
    ):
        assert words in alone.text
        assert words in shared.text
    assert shared.text.count("verify: 9 checks of") == 1


THREADS = """
import os

def test_plain():
    assert False

@check(chapter=2, property="p", evidence=Evidence.EXACT)
def test_threads(judge):
    judge.conclude(finding("pass", details={"threads": os.environ["OMP_NUM_THREADS"]}))
"""


def test_a_drawn_seed_is_everyones_the_cores_are_shared_and_other_tests_count(
    fake: Any, check_source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    fake.checks(check_source("test_a", "pass"), check_source("test_b", "pass"), THREADS)
    outcome = fake.run("-n", "2")
    assert (outcome.exit_code, outcome.results["verdict"]) == (1, "pass")
    assert "a test that is not a check of this suite failed" in outcome.text
    threads = int(outcome.checks["test_threads"]["details"]["data"]["threads"])
    assert threads == max(1, (os.cpu_count() or 1) // 2)
    seed = outcome.results["seed"]
    assert f"seed {seed}" in outcome.text
    assert f"--seed {seed}" in outcome.results["command"]
    for check in outcome.checks.values():
        assert check["details"]["seed"] == derive_seed(seed, check["id"])


def test_a_check_that_ends_its_worker_is_an_error_and_the_others_are_judged(fake: Any, check_source: Source) -> None:
    fake.checks(
        check_source("test_a", "pass"), crashing(check_source("test_b", "pass")), check_source("test_c", "pass")
    )
    fake.checks(check_source("test_d", "pass"), check_source("test_e", "pass"), name="suite/test_more.py")
    outcome = fake.run("-n", "2")
    expected = {"test_a": "pass", "test_b": "error", "test_c": "pass", "test_d": "pass", "test_e": "pass"}
    assert outcome.verdicts == expected
    assert (outcome.exit_code, outcome.results["verdict"]) == (11, "incomplete")
    assert "crashed while running" in outcome.checks["test_b"]["reason"]
    assert "test_b" in outcome.checks["test_b"]["details"]["command"]


def test_a_run_without_workers_left_is_incomplete(fake: Any, check_source: Source) -> None:
    fake.checks(*(crashing(check_source(f"test_{number}", "pass")) for number in range(4)))
    outcome = fake.run("-n", "2", "--max-worker-restart", "0")
    assert (outcome.exit_code, outcome.results["verdict"]) == (11, "incomplete")
    assert "pass" not in outcome.verdicts.values()
    assert len(outcome.verdicts) + len(outcome.not_verified("not_run")) == 4


def test_what_cannot_be_collected_makes_the_run_incomplete(fake: Any, check_source: Source) -> None:
    fake.checks(check_source("test_a", "pass"))
    fake.checks("import no_such_module\n", name="suite/test_broken.py")
    outcome = fake.run("-n", "2")
    assert (outcome.exit_code, outcome.results["verdict"]) == (11, "incomplete")
    assert "suite/test_broken.py" in outcome.not_verified("run")
    assert outcome.text.count("no_such_module") <= 4


def test_ctrl_c_keeps_what_was_judged(fake: Any, check_source: Source) -> None:
    listens = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"  # no background job does
    interrupt = "    import os, signal, time; time.sleep(1); os.kill(os.getppid(), signal.SIGINT); time.sleep(2)\n"
    fake.checks(
        listens,
        check_source("test_a", "pass"),
        check_source("test_b", "pass").replace("    judge.conclude", f"{interrupt}    judge.conclude"),
        check_source("test_c", "pass"),
    )
    outcome = fake.run("-n", "2", subprocess=True)
    assert (outcome.exit_code, outcome.results["verdict"]) == (11, "incomplete")
    assert outcome.verdicts["test_a"] == "pass"
    assert "test_b" not in outcome.verdicts
    assert outcome.not_verified("run") == ["the run"]


def test_selecting_stopping_and_collecting_go_on_working(fake: Any, check_source: Source) -> None:
    fake.checks(*(check_source(f"test_{number}", "fail") for number in range(6)), check_source("test_last", "pass"))
    stopped = fake.run("-n", "2", "-x")
    assert (stopped.exit_code, stopped.results["verdict"]) == (1, "fail")
    assert stopped.not_verified("not_run")
    assert "stopping after 1 failures" in stopped.text
    selected = fake.run("-n", "2", "-k", "last", "--allow-partial")
    assert (selected.exit_code, selected.verdicts) == (0, {"test_last": "pass"})
    assert len(selected.not_verified("not_selected")) == 6
    collected = fake.run("-n", "2", "--collect-only", "-q")
    assert collected.exit_code == 0
    assert "suite/test_fake.py::test_last" in collected.text
    assert fake.latest() == selected.folder
    alone = fake.run("-n", "0", "-k", "last", "--allow-partial")
    assert (alone.exit_code, alone.verdicts) == (0, {"test_last": "pass"})
    assert "workers" not in alone.results["environment"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-n", "2", "--dist", "each"], "--dist 'each' is not valid. Valid: load, worksteal"),
        (["-n", "2", "--dist", "loadgroup"], "did you mean 'load'?"),
        (["--dist", "load", "--tx", "popen//chdir=elsewhere"], "use -n N instead"),
        (["-f"], "leave it out"),
        (["-n", "2", "--decoder", "worker:engine.py"], "leave out -n"),
        (["-n", "2", "--seed", "x"], "--seed 'x' must be a whole number"),
    ],
)
def test_what_cannot_be_had_is_refused(fake: Any, check_source: Source, arguments: list[str], words: str) -> None:
    fake.checks(check_source("test_a", "pass"))
    outcome = fake.run(*arguments, decoder="--decoder" not in arguments)
    assert outcome.exit_code == 4
    assert words in outcome.text
    assert outcome.folder is None


def test_processes_that_select_differently_are_refused(fake: Any, check_source: Source) -> None:
    fake.write(
        {
            "suite/conftest.py": "def pytest_collection_modifyitems(config, items):\n"
            "    items[:] = items[: 1 if hasattr(config, 'workerinput') else 3]\n"
        }
    )
    fake.checks(*(check_source(f"test_{number}", "pass") for number in range(3)))
    outcome = fake.run("-n", "2")
    assert outcome.exit_code == 4
    assert "collected 1 tests and its controller 3, different in 'suite/test_fake.py::test_1'" in outcome.text
    assert outcome.results["verdict"] == "incomplete"
