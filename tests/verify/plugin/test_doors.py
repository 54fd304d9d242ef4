"""The three ways in: each is one thing to judge, with a manifest of its own."""

from typing import Any

import pytest

from verify.doors import CLOSED, DOORS, left_out, opens
from verify.manifest import read_manifest
from verify.options import OWN_SUITE
from verify.report.words import CHAPTERS

pytest_plugins = ["pytester"]

CHECK = """
@check(chapter=1, property="p", evidence=Evidence.EXACT)
def test_a(judge):
    judge.conclude(finding("pass", details={"options": repr(judge.options)}))

@check(chapter=16, property="q", evidence=Evidence.BETTING)
def test_kernel(judge):
    judge.conclude(finding("pass", details={"alpha": judge.alpha}))
"""
KERNEL = """
def verify(draft_token_ids, draft_probs, target_probs, draft_lengths):
    raise RuntimeError("never asked")

number = 3
"""
LINE = '{"prompt_token_ids": [1], "token_ids": [2], "sampling": {"temperature": 0}, "max_new_tokens": 1, "engine": "e 1"}\n'


def prepare(fake: Any) -> None:
    fake.checks(CHECK)
    fake.write({"my_kernel.py": KERNEL, "log.jsonl": LINE, "log.txt": LINE, "model/config.json": "{}"})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--verifier", "my_kernel:verify", "--decoder", "my_adapter:make_decoder"], ["a run judges one thing"]),
        (["--verifier", "my_kernel:verify", "--generations", "log.jsonl"], ["a run judges one thing"]),
        (["--generations", "log.jsonl", "--decoder", "dspark"], ["--decoder dspark and --generations log.jsonl"]),
        (["--verifier", "my_kernel"], ["names a file; name the function in it: my_kernel:verify"]),
        (["--verifier", "nowhere:verify"], ["--verifier 'nowhere:verify': cannot import 'nowhere'"]),
        (["--verifier", "my_kernel:verfy"], ["did you mean 'verify'?"]),
        (["--verifier", "my_kernel:number"], ["is int; it must be a function verify(draft_token_ids, draft_probs"]),
        (["--generations", "log.jsonl"], ["--generations without --target"]),
        (["--generations", "none.jsonl", "--target", "model"], ["--generations 'none.jsonl' is not a file"]),
        (["--generations", "log.txt", "--target", "model"], ["its name must end in .jsonl, .jsonl.gz, .jsonl.zst"]),
    ],
)
def test_a_wrong_value_is_a_usage_error(fake: Any, arguments: list[str], words: list[str]) -> None:
    prepare(fake)
    outcome = fake.run(*arguments, decoder=False)
    assert (outcome.exit_code, outcome.folder) == (4, None)
    for each in words:
        assert each in outcome.text
    assert outcome.text.count("ERROR") == 1
    assert "Traceback" not in outcome.text


def test_a_door_has_its_own_checks_and_budget(fake: Any) -> None:
    prepare(fake)
    by_decoder = fake.run()
    assert (by_decoder.exit_code, set(by_decoder.verdicts)) == (0, {"test_a"})
    by_kernel = fake.run("--verifier", "my_kernel:verify", decoder=False)
    assert (by_kernel.exit_code, set(by_kernel.verdicts)) == (0, {"test_a", "test_kernel"})
    assert by_kernel.checks["test_kernel"]["details"]["alpha"] == 1e-6
    assert by_kernel.results["decoder"] == {
        "name": "my_kernel:verify",
        "adapter": "my_kernel:verify",
        "capabilities": {},
    }
    assert "--verifier my_kernel:verify" in by_kernel.checks["test_a"]["details"]["command"]
    by_log = fake.run("--generations", "log.jsonl", "--target", "model", decoder=False)
    assert by_log.results["decoder"]["name"] == "e 1"
    assert (by_log.exit_code, by_log.verdicts) == (11, {})  # no chapter of this suite is open to it: never 0


def test_the_environment_and_the_ini_file_name_any_door(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(fake)
    monkeypatch.setenv("VERIFY_VERIFIER", "my_kernel:verify")
    assert fake.run(decoder=False).results["decoder"]["name"] == "my_kernel:verify"
    assert fake.run().results["decoder"]["name"] == "my_adapter:make_decoder"  # the command line comes first
    monkeypatch.setenv("VERIFY_DECODER", "my_adapter:make_decoder")
    assert fake.run(decoder=False).exit_code == 4


def test_a_full_run_through_a_door_is_never_empty() -> None:
    manifests = {door: read_manifest(OWN_SUITE, profile="smoke", door=door) for door in DOORS}
    chapters = {door: {entry.chapter for entry in manifest} for door, manifest in manifests.items()}
    assert chapters["verifier"] == {1, 2, 3, 7, 9, 15, 16}
    assert chapters["generations"] == {15, 17}
    assert chapters["engine"] == {15, 18}
    assert chapters["decoder"] == set(CHAPTERS) - {16, 17, 18}
    for door in DOORS:
        assert chapters[door] | set(CLOSED[door]) == set(CHAPTERS)  # none is forgotten
        assert all(not opens(door, chapter) for chapter in left_out(door))
        assert any(entry.required for entry in manifests[door] if entry.chapter != 15)
