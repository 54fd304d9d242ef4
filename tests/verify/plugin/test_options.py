"""The command line: every wrong value is one usage error that says what is valid."""

import math
import os
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

import verify
from verify.budget import Budget, derive_seed
from verify.declared import known_decoders
from verify.results import Evidence

pytest_plugins = ["pytester"]

CHECK = """
@check(chapter=1, property="p", evidence=Evidence.EXACT)
def test_a(judge):
    judge.conclude(finding("pass", details={"options": repr(judge.options), "profile": judge.profile}))
"""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--decoder", "dsparc"],
            ["'dsparc' is not valid", "did you mean 'dspark'", "transformers", "module:attribute"],
        ),
        (["--decoder", "nowhere:make"], ["cannot import 'nowhere'", "importable from the current directory"]),
        (["--decoder", "broken:make"], ["RuntimeError: no engine", "broken.py:1"]),
        (["--decoder", "my_adapter:make_decodr"], ["did you mean 'make_decoder'?"]),
        (["--decoder", "my_adapter:not_callable"], ["is int; it must be a function make_decoder(models)"]),
        (["--decoder", "my_adapter"], ["names a file; name the function in it: my_adapter:make_decoder"]),
        (["--decoder", "my_adapter.py:make_decodr"], ["name the function in it: my_adapter:make_decodr"]),
        (["--decoder", "misspelt:make"], ["cannot import 'misspelt': SyntaxError", "misspelt.py"]),
        (["--verifier", "my_adapter.py"], ["name the function in it: my_adapter:verify"]),
        (["--decoder", ":make"], ["must be a known name or module:attribute"]),
        (["--device", "gpu"], ["--device 'gpu' is not valid", "Valid: cpu, cuda"]),
        (["--dtype", "float23"], ["did you mean 'float32'?", "Valid: float64, float32, bfloat16"]),
        (["--profile", "exhaustiv"], ["did you mean 'exhaustive'?"]),
        (["--require-device", "tpu"], ["Valid: cpu, cuda"]),
        (["--false-alarm", "0"], ["probability between 0 and 1"]),
        (["--false-alarm", "nan"], ["probability between 0 and 1"]),
        (["--false-alarm", "few"], ["probability between 0 and 1"]),
        (["--seed", "-1"], ["whole number"]),
        (["--target", "missing"], ["--target 'missing' is not a directory"]),
        (["--draft", "suite"], ["--draft without --target"]),
        (["--xfails", "missing.toml"], ["is not a file"]),
    ],
)
def test_a_wrong_value_is_a_usage_error(fake: Any, arguments: list[str], words: list[str]) -> None:
    fake.checks(CHECK)
    fake.write({"broken.py": "raise RuntimeError('no engine')\n", "misspelt.py": "def make(:\n"})
    outcome = fake.run(*arguments, decoder=not {"--decoder", "--verifier"} & set(arguments))
    assert (outcome.exit_code, outcome.folder) == (4, None)
    for each in words:
        assert each in outcome.text
    assert outcome.text.count("ERROR") == 1
    assert "Traceback" not in outcome.text


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("option", ["--device", "--require-device"])
def test_cuda_is_refused_where_there_is_none(fake: Any, option: str) -> None:
    fake.checks(CHECK)
    outcome = fake.run(option, "cuda")
    assert outcome.exit_code == 4
    assert "torch sees no CUDA device" in outcome.text


def test_options_reach_the_check(fake: Any) -> None:
    fake.checks(CHECK)
    fake.write({"checkpoints/target/config.json": "{}", "checkpoints/draft/config.json": "{}"})
    more = ["--target", "checkpoints/target", "--draft", "checkpoints/draft", "--report-dir", "out", "--seed", "12"]
    outcome = fake.run(*more, "--profile", "smoke", "--dtype", "bfloat16", "--false-alarm", "1e-3")
    assert outcome.exit_code == 0
    assert outcome.folder is None  # not under reports/local
    (folder,) = (fake.pytester.path / "out" / "my_adapter-make_decoder").glob("2*")
    assert (folder.parent / "latest").resolve() == folder
    assert {path.name for path in folder.iterdir()} == {"results.json", "report.html", "summary.md", "junit.xml"}
    text = (folder / "results.json").read_text()
    for words in ("checkpoints/target", "checkpoints/draft", "seed=12", "dtype='bfloat16'", "false_alarm=0.001"):
        assert words in text
    for words in ("profile       smoke, seed 12", "dtype bfloat16", "claims", "false alarm   0.001, unspent"):
        assert words in outcome.text


def test_the_decoder_may_come_from_the_environment_or_the_ini_file(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.checks(CHECK)
    ini = fake.pytester.path / "pytest.ini"
    ini.write_text(ini.read_text() + "verify_decoder = my_adapter:make_decoder\n")
    assert fake.run(decoder=False).results["decoder"]["name"] == "my_adapter:make_decoder"
    monkeypatch.setenv("VERIFY_DECODER", "my_adapter:make_dishonest")
    outcome = fake.run(decoder=False)
    assert outcome.results["decoder"]["name"] == "my_adapter:make_dishonest"
    assert "--decoder my_adapter:make_dishonest" in outcome.results["command"]
    assert fake.run().results["decoder"]["name"] == "my_adapter:make_decoder"


def test_the_installed_package_can_be_run_from_anywhere(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`pytest --pyargs verify --decoder module:attr`: options are known, the directory is importable, errors are clear."""
    root = Path(verify.__file__).parents[1]
    site = pytester.mkdir("site")
    info = site / "fake-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fake\nVersion: 1.0\n")
    # The entry point of this project, whether or not it is installed here: pytest loads each name once.
    declared = tomllib.loads((root / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
    (info / "entry_points.txt").write_text("\n".join(["[pytest11]", *(f"{k} = {v}" for k, v in declared.items())]))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), str(root)]))
    elsewhere = pytester.mkdir("elsewhere")
    monkeypatch.chdir(elsewhere)
    (elsewhere / "mine.py").write_text("make_decoder = 3\n")
    done = pytester.run(sys.executable, "-m", "pytest", "--pyargs", "verify", "--decoder", "mine:make_decoder")
    done.stderr.fnmatch_lines(["ERROR: --decoder 'mine:make_decoder' is int; it must be a function*"])
    assert done.ret == 4
    (elsewhere / "test_plain.py").write_text("def test_plain():\n    pass\n")
    plain = pytester.run(sys.executable, "-m", "pytest", "--pyargs", "test_plain.py", "--decoder", "x")
    plain.stderr.fnmatch_lines(["*unrecognized arguments*--decoder*"])


def test_decoder_names_come_from_the_checkout_without_installation() -> None:
    assert known_decoders()["dspark"] == "dspark.conformance:make_dspark_decoder"


@pytest.mark.parametrize("number", [1, 3, 7, 49, 1000])
def test_the_shares_never_exceed_the_budget(number: int) -> None:
    evidences = [Evidence.BETTING, Evidence.EXACT, Evidence.TWO_SAMPLE] * number
    budget = Budget.over(evidences, total=1e-6)
    assert budget.num_statistical == 2 * number
    assert math.fsum(budget.alpha(each) for each in evidences) <= 1e-6
    assert sum(budget.alpha(each) for each in evidences) == pytest.approx(1e-6)
    assert budget.alpha(Evidence.EXACT) == budget.alpha(Evidence.TIMING) == 0


def test_derived_seeds_are_fixed_for_all_time() -> None:
    """A recorded seed must reproduce its run with later versions."""
    assert derive_seed(0, "a") == 5690829181965289459
    assert derive_seed(0, "a") != derive_seed(0, "b") != derive_seed(1, "b")
