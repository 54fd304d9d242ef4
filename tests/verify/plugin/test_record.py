"""What survives: interruption, a crash, a report that cannot be written."""

import gzip
import json
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest

from verify.report.schema import SCHEMA_FILE

pytest_plugins = ["pytester"]

Source = Callable[..., str]


def test_ctrl_c_leaves_an_incomplete_report(fake: Any, check_source: Source) -> None:
    fake.checks(
        check_source("test_a", "pass"),
        "import os, signal, time\n",
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background begins by ignoring it\n",
        check_source("test_b", "pass").replace("    judge", "    os.kill(os.getpid(), signal.SIGINT)\n    judge"),
        check_source("test_c", "pass"),
    )
    outcome = fake.run(subprocess=True)
    assert (outcome.exit_code, outcome.results["verdict"]) == (11, "incomplete")
    assert outcome.verdicts == {"test_a": "pass"}
    assert len(outcome.not_verified("not_run")) == 2
    assert outcome.not_verified("run") == ["the run"]
    assert outcome.folder is not None
    assert (outcome.folder / "report.html").is_file()


def test_a_crash_of_the_interpreter_leaves_what_was_judged(fake: Any, check_source: Source) -> None:
    fake.checks(
        check_source("test_a", "pass"),
        "import os\n",
        check_source("test_b", "pass").replace("    judge", "    os._exit(9)\n    judge"),
    )
    outcome = fake.run(subprocess=True)
    assert outcome.exit_code == 9
    assert (outcome.results["verdict"], outcome.verdicts) == ("incomplete", {"test_a": "pass"})


def test_a_report_that_cannot_be_written_costs_nothing_else(
    fake: Any, check_source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(results: object) -> str:
        raise ZeroDivisionError("no ink")

    monkeypatch.setitem(__import__("verify.report.writer", fromlist=["x"]).WRITERS, "report.html", broken)
    fake.checks(check_source("test_a", "pass"))
    outcome = fake.run()
    assert outcome.exit_code == 0
    assert outcome.folder is not None
    assert {path.name for path in outcome.folder.iterdir()} == {"results.json", "summary.md", "junit.xml"}
    assert "report.html could not be written: ZeroDivisionError: no ink" in outcome.text


def test_the_record_follows_its_schema(fake: Any, check_source: Source) -> None:
    fake.checks(*(check_source(f"test_{each}", each) for each in ("pass", "fail", "error", "inconclusive")))
    outcome = fake.run()
    jsonschema.Draft202012Validator(json.loads(SCHEMA_FILE.read_text())).validate(outcome.results)


GENERATIONS = """
from types import SimpleNamespace as Some
from verify.protocol import Request

@check(chapter=1, property="p", evidence=Evidence.EXACT)
def test_a(judge):
    models = Some(name="tables", vocab_size=3, device="cpu", dtype="float64")
    judge.make_decoder(models)
    judge.shared["seen"] = models
    record = Some(num_spec_steps=1, acceptance_histogram=[0, 1])
    answer = Some(token_ids=[1, 2], finish_reason="length", record=record, private=object())
    request = Request(prompt_token_ids=(0,), max_new_tokens=2)
    judge.log_generation(request=request, generation=answer, models_name="tables")
    judge.progress(1, 2, "tokens")
    judge.conclude(finding("pass"))

@check(chapter=1, property="p", evidence=Evidence.EXACT)
def test_b(judge):
    assert judge.shared["seen"].name == "tables"
    judge.conclude(finding("pass"))
"""


def test_generations_models_and_claims_are_recorded(fake: Any) -> None:
    fake.checks(GENERATIONS)
    outcome = fake.run()
    assert outcome.exit_code == 0
    assert outcome.folder is not None
    (line,) = gzip.decompress((outcome.folder / "generations.jsonl.gz").read_bytes()).splitlines()
    logged = json.loads(line)
    assert (logged["check"], logged["models"]) == ("suite/test_fake.py::test_a", "tables")
    assert logged["request"]["sampling"]["temperature"] == 1.0
    assert logged["generation"] == {
        "token_ids": [1, 2],
        "finish_reason": "length",
        "record": {"num_spec_steps": 1, "acceptance_histogram": [0, 1]},
    }
    assert outcome.results["models"][0]["name"] == "tables"
    assert outcome.results["decoder"]["capabilities"]["greedy"] is True
    assert "streaming" in outcome.not_verified("capability")
    assert not {"greedy", "arithmetic"} & set(outcome.not_verified("capability"))


def test_a_claim_that_does_not_exist_fails(fake: Any) -> None:
    fake.checks(GENERATIONS)
    outcome = fake.run("--decoder", "my_adapter:make_dishonest", decoder=False)
    assert outcome.exit_code == 1
    assert outcome.checks["test_a"]["verdict"] == "fail"
    assert "did you mean 'greedy'?" in outcome.checks["test_a"]["reason"]
