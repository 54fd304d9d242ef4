"""A race from the command line to the files, the refusal of what is not judged, and the gate."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from verify.bench.contestant import PLAIN
from verify.bench.entrants import enter
from verify.bench.options import BenchOptions, read_bench_options
from verify.bench.race import NotJudged, Race
from verify.bench.races import RACES, stored_races, summary
from verify.bench.schema import BenchResults
from verify.bench.test_race import test_speed as check_speed
from verify.options import Options

ROOT = Path(__file__).parents[3]


def options(**changes: Any) -> BenchOptions:
    given: dict[str, Any] = {
        "common": Options(decoder="dspark-classic"),
        "baseline": PLAIN,
        "cost": None,
        "concurrency": (1,),
        "num_draft_tokens": 3,
        "baseline_num_draft_tokens": 3,
        "max_new_tokens": 4,
        "prompt_tokens": 8,
        "temperature": 0.0,
        "minutes": 0.0,
        "verdict": None,
        "unjudged": False,
        "fail_below": None,
        "out": None,
    }
    return BenchOptions(**(given | changes))


def said(tmp_path: Path, **values: Any) -> Any:
    """A pytest configuration with these options."""
    return SimpleNamespace(
        option=SimpleNamespace(**values),
        getini=lambda name: "",
        getoption=lambda name, default: default,
        invocation_params=SimpleNamespace(dir=tmp_path),
        rootpath=tmp_path,
    )


def test_a_race_from_the_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "verify/bench/test_race.py", "-p", "no:cacheprovider", "--unjudged"]
    command += ["--decoder", "dspark-classic", "--concurrency", "1,2", "--minutes", "0", "--max-new-tokens", "4"]
    command += ["--fail-below", "1000", "--out", str(tmp_path), "--verdict", str(tmp_path / "none")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "its lower end must reach 1000" in done.stdout
    assert "2 failed, 4 passed" in done.stdout  # the gate, twice; everything else was measured
    assert "NOT JUDGED LOSSLESS" in done.stdout
    race = BenchResults.model_validate_json((tmp_path / "bench.json").read_text())
    assert race.unjudged
    assert [speed.concurrency for speed in race.speed] == [1, 2]
    for speed in race.speed:
        names = {"dspark-classic", "plain (transformers)", "plain (dspark-classic)"}
        assert set(speed.seconds) == names
        assert all(len(times) == 5 for times in speed.seconds.values())
        assert speed.baseline in names - {"dspark-classic"}
        assert speed.speed_up[speed.baseline].low <= speed.speed_up[speed.baseline].high
        assert set(speed.identical_outputs.values()) == {"2 of 2"}
    assert set(race.shares) == names
    assert sum(race.shares["dspark-classic"].shares.values()) == pytest.approx(1)
    assert race.shares["dspark-classic"].shares["draft"] > 0 == race.shares["plain (transformers)"].shares["draft"]
    assert race.acceptance["dspark-classic"].mean_acceptance_length is not None
    assert race.limit is not None
    assert race.limit.share_reached > 0
    assert "NOT JUDGED LOSSLESS" in (tmp_path / "bench.html").read_text()
    assert "-dirty" in race.commit or len(race.commit) in (0, 40)


def test_no_speed_without_a_verdict_of_pass(tmp_path: Path) -> None:
    with pytest.raises(NotJudged, match="no speed is reported for 'dspark-classic': its verdict is not judged"):
        Race(options(verdict=tmp_path / "nowhere"), working_dir=ROOT, command="")


def test_the_gate_holds_at_the_lower_end() -> None:
    ratio = SimpleNamespace(low=0.96, estimate=1.0, high=1.04)
    race: Any = SimpleNamespace(measure_speed=lambda concurrency: SimpleNamespace(baseline="b", speed_up={"b": ratio}))
    check_speed(race, options(fail_below=0.95), 1)
    check_speed(race, options(), 1)
    ratio.low = 0.94
    with pytest.raises(pytest.fail.Exception, match=r"is 1.000 \[0.940, 1.040\]; its lower end must reach 0.95"):
        check_speed(race, options(fail_below=0.95), 1)


def test_a_decoder_races_itself(tmp_path: Path) -> None:
    from verify.bench.entrants import open_models

    same = options(baseline="dspark-classic", common=Options(decoder="dspark-classic", report_dir=tmp_path))
    names = [each.name for each in enter(same, open_models(same), working_dir=ROOT)]
    assert names == ["dspark-classic", "dspark-classic (again)"]


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"bench_cost": "7T"}, "--cost '7T' is not valid"),
        ({"bench_concurrency": "1,x"}, "--concurrency '1,x' must be whole numbers"),
        ({"bench_max_new_tokens": "1.5"}, "--max-new-tokens '1.5' must be a whole number|--max-new-tokens"),
        ({"bench_minutes": "soon"}, "--minutes 'soon' must be a number"),
        ({"bench_fail_below": "-1"}, "--fail-below '-1' must be a number"),
        ({"verify_verifier": "a:b"}, "'a:b' is no decoder but came as verifier"),
    ],
)
def test_a_wrong_option_is_refused(tmp_path: Path, values: dict[str, str], complaint: str) -> None:
    with pytest.raises(pytest.UsageError, match=complaint):
        read_bench_options(said(tmp_path, **values))


def test_options_have_defaults(tmp_path: Path) -> None:
    found = read_bench_options(said(tmp_path, verify_decoder="dspark-classic", bench_num_draft_tokens="4"))
    assert found.concurrency == (1, 4, 16, 64)
    assert (found.baseline, found.baseline_num_draft_tokens, found.fail_below) == (PLAIN, 4, None)


def test_the_page_about_all_races_says_what_the_cost_is_worth(numbers: SimpleNamespace, tmp_path: Path) -> None:
    for name in list(RACES)[:2]:
        (tmp_path / name).mkdir()
        race = numbers.race_of([1.0, 1.1], [2.0, 2.1])
        (tmp_path / name / "bench.json").write_text(race.to_json())
    text = summary(stored_races(tmp_path))
    assert text.count("| fixture | mine | theirs | 1 | 1.00 [0.90, 1.10] |") == 2
    assert text.count("fixture: small") == 1
    assert f"({next(iter(RACES))}/bench.html)" in text
