"""The README's text is true: its adapter works as printed, its table lists the suite's properties."""

import re
import subprocess
import sys
from pathlib import Path

from verify.declared import known_decoders
from verify.manifest import read_manifest
from verify.options import OWN_SUITE
from verify.report.overview import MARKS, insert, property_table
from verify.report.schema import Results

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ENGINE = """
from types import SimpleNamespace
from verify.instrument import CORRECT, InstrumentDecoder
from verify.protocol import Request, SamplingParams

class Engine:
    def __init__(self, target, draft):
        self.inner = InstrumentDecoder(SimpleNamespace(target=target, draft=draft), CORRECT["standard"])

    def generate(self, prompt, max_new_tokens, num_draft_tokens, *, stop, temperature, seed):
        sampling = SamplingParams(temperature=temperature)
        request = Request(prompt_token_ids=tuple(prompt), max_new_tokens=max_new_tokens, stop_token_ids=tuple(stop),
                          num_draft_tokens=num_draft_tokens, sampling=sampling)
        return list(self.inner.generate([request])[0].token_ids)
"""


def adapter() -> str:
    found = re.search(r"<!-- adapter -->\n```python\n(.*?)```", README, re.DOTALL)
    assert found
    return found.group(1)


def test_the_adapter_is_short() -> None:
    lines = [
        line
        for line in adapter().splitlines()
        if line.strip() and not line.lstrip().startswith(("#", "from ", "import "))
    ]
    assert len(lines) <= 15


def test_the_adapter_works_from_another_directory(tmp_path: Path) -> None:
    (tmp_path / "my_adapter.py").write_text(adapter())
    (tmp_path / "my_engine.py").write_text(ENGINE)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--pyargs",
        "verify.suite.test_02_exact_law",
        "verify.suite.test_13_unclaimed",
        "-k",
        "close or unclaimed",
    ]
    command += ["--decoder", "my_adapter:make_decoder", "--profile", "smoke", "--allow-partial", "--seed", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list((tmp_path / "reports" / "local").glob("*/latest/results.json"))


def test_named_decoders_exist() -> None:
    listed = re.search(r"Ready adapters: (.*?)\n\n", README, re.DOTALL)
    assert listed
    assert set(re.findall(r"`([a-z0-9-]+)`", listed.group(1))) == set(known_decoders())


def test_the_table_lists_the_properties_of_the_suite() -> None:
    table = README.split(MARKS[0])[1].split(MARKS[1])[0]
    listed = {line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ") and "**" not in line}
    suite = {entry.property for entry in read_manifest(OWN_SUITE, profile="exhaustive", door="decoder")}
    assert listed - {"property"} == suite


def test_a_table_replaces_what_stands_between_the_marks() -> None:
    text = f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n"
    assert insert(text, "new") == f"before\n{MARKS[0]}\nnew\n{MARKS[1]}\nafter\n"


def test_the_committed_report_gives_the_table() -> None:
    results = Results.model_validate_json(
        (ROOT / "reports" / "dspark-classic" / "results.json").read_text(encoding="utf-8")
    )
    assert results.verdict == "pass"
    assert insert(README, property_table(results)) == README
