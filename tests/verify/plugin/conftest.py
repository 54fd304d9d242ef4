"""A fake suite in an empty directory, judged by the real plugin."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import verify
import verify.plugin
import verify.protocol  # here: pytester forgets what a run imports, and torch cannot be imported twice

HEAD = """
import pytest
from verify.judge import ContractViolation, NotApplicable, check
from verify.results import Evidence, Finding, Verdict

def finding(verdict, **more):
    given = dict(verdict=Verdict(verdict), evidence=Evidence.EXACT, reason=f"said {verdict}", observations=5)
    return Finding(**(given | more))
"""

CONFTEST = """
from verify import plugin

def pytest_addoption(pluginmanager):
    if not pluginmanager.is_registered(plugin):
        pluginmanager.register(plugin, plugin.__name__)

def pytest_configure(config):
    plugin.activate(config)
"""

ADAPTER = """
class Decoder:
    capabilities = {"greedy": True}
    def generate(self, requests):
        return []

def make_decoder(models):
    return Decoder()

def make_dishonest(models):
    decoder = Decoder()
    decoder.capabilities = {"greedi": True}
    return decoder

not_callable = 3
"""


def one_check(name: str, verdict: str, *, mark: str = "", **more: object) -> str:
    words = "".join(f", {key}={value!r}" for key, value in more.items())
    return f"""
@check(chapter=2, property="property of {name}", evidence=Evidence.EXACT{mark})
def {name}(judge):
    judge.conclude(finding("{verdict}"{words}))
"""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    exit_code: int
    text: str
    folder: Path | None

    @property
    def results(self) -> dict[str, Any]:
        assert self.folder is not None, self.text
        loaded: dict[str, Any] = json.loads((self.folder / "results.json").read_text(encoding="utf-8"))
        return loaded

    @property
    def checks(self) -> dict[str, dict[str, Any]]:
        """By the name of the function."""
        return {each["id"].split("::")[-1]: each for each in self.results["checks"]}

    @property
    def verdicts(self) -> dict[str, str]:
        return {name: each["verdict"] for name, each in self.checks.items()}

    def not_verified(self, kind: str) -> list[str]:
        return [each["what"] for each in self.results["not_verified"] if each["kind"] == kind]


@dataclass(frozen=True, kw_only=True)
class FakeSuite:
    """Writes files into the directory and runs pytest there."""

    pytester: pytest.Pytester

    def write(self, files: Mapping[str, str]) -> None:
        for name, text in files.items():
            path = self.pytester.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")

    def checks(self, *functions: str, name: str = "suite/test_fake.py") -> None:
        self.write({name: HEAD + "".join(functions)})

    def run(self, *arguments: str, subprocess: bool = False, decoder: bool = True, suite: str = "suite") -> Outcome:
        given = [suite] if suite else []
        given += ["--decoder", "my_adapter:make_decoder"] if decoder else []
        run = self.pytester.runpytest_subprocess if subprocess else self.pytester.runpytest_inprocess
        done = run(*given, *arguments)
        return Outcome(
            exit_code=int(done.ret),
            text="\n".join([*done.outlines, *done.errlines]),
            folder=self.latest(),
        )

    def latest(self) -> Path | None:
        found = sorted(
            (self.pytester.path / "reports" / "local").glob("*/latest"), key=lambda path: path.stat().st_mtime
        )
        return found[-1].resolve() if found else None


@pytest.fixture
def fake(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> FakeSuite:
    root = str(Path(verify.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("VERIFY_DECODER", raising=False)
    suite = FakeSuite(pytester=pytester)
    suite.write(
        {
            "conftest.py": CONFTEST,
            "my_adapter.py": ADAPTER,
            "pytest.ini": (
                "[pytest]\nverify_suite = suite\naddopts = --strict-markers --import-mode=importlib -ra "
                "-p no:cacheprovider -p no:hypothesispytest -p no:benchmark\nfilterwarnings = error\n"
            ),
        }
    )
    return suite


@pytest.fixture
def check_source() -> Callable[..., str]:
    return one_check
