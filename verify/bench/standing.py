"""Whether a decoder may be timed: its stored verdict, and whether that was about the code that runs now."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from verify.bench.schema import Standing
from verify.report.recorder import folder_name
from verify.report.schema import Results
from verify.report.verdict import conclude

RESULTS = "results.json"
PACKAGES = ("torch", "transformers")
DECIDED = ("pass", "fail", "inconclusive")


def find_standing(
    name: str, *, given: Path | None, folders: Sequence[Path], checkout: Path, environment: Mapping[str, str]
) -> Standing:
    """The stored verdict on `name`: that of `given`, a run's folder or file, or of the first of `folders` that decided.

    An unfinished or outdated run decides nothing. A verdict is outdated where the decoder's code has changed since its commit,
    or torch or transformers are other versions.
    """
    places = [given] if given else list(folders)
    files = [place / RESULTS if place.is_dir() else place for place in places]
    found = [_standing(name, file, checkout=checkout, environment=environment) for file in files if file.is_file()]
    decided = [each for each in found if each.verdict in DECIDED]
    if found:
        return (decided or found)[0]
    command = f"`pytest verify/ --decoder {name}`"
    if given:
        return Standing(name=name, verdict="not judged", reason=f"{given} does not exist; {command} writes one")
    return Standing(name=name, verdict="not judged", reason=f"no stored verdict; {command} writes one")


def places_of(name: str, *, checkout: Path, report_dir: Path) -> list[Path]:
    """Where verdicts on a decoder lie: the newest run here, then the one that the repository ships."""
    folder = folder_name(name)
    return [report_dir / folder / "latest", checkout / "reports" / folder]


def _standing(name: str, file: Path, *, checkout: Path, environment: Mapping[str, str]) -> Standing:
    source = str(file.relative_to(checkout)) if file.is_relative_to(checkout) else str(file)
    try:
        results = Results.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        reason = f"{source} cannot be read ({type(error).__name__})"
        return Standing(name=name, verdict="not judged", reason=reason, source=source)
    outdated = _outdated(results, name, checkout=checkout, environment=environment)
    why = "" if results.verdict == "pass" else f"{conclude(results.checks, results.not_verified).reason}; "
    judged = f"{why}judged {results.environment.get('started', 'at an unknown time')}, profile {results.profile}"
    if results.commit.endswith("-dirty"):
        judged += ", with changes that were not committed"
    return Standing(
        name=name,
        verdict="outdated" if outdated and results.verdict == "pass" else results.verdict,
        reason=judged + (f"; {outdated}" if outdated else ""),
        source=source,
        commit=results.commit,
    )


def _outdated(results: Results, name: str, *, checkout: Path, environment: Mapping[str, str]) -> str:
    """Why a verdict is not about what runs now; empty where it is."""
    if results.decoder.name != name:
        return f"it is about {results.decoder.name!r}, not about {name!r}"
    for package in PACKAGES:
        then, now = results.environment.get(package), environment.get(package)
        if then != now:
            return f"it was judged with {package} {then} and would run with {now}"
    commit = results.commit.removesuffix("-dirty")
    code = _code_of(results.decoder.adapter)
    if not commit or not (checkout / code).exists():
        return ""
    done = subprocess.run(
        ["git", "diff", "--quiet", commit, "--", code], cwd=checkout, capture_output=True, check=False
    )
    if done.returncode == 1:
        return f"{code} has changed since {commit[:10]}, where it was judged"
    return "" if done.returncode == 0 else f"the commit {commit[:10]}, where it was judged, is not in this repository"


def _code_of(adapter: str) -> str:
    """The decoder's code as a path in the checkout: its package, or the module where the suite brings the adapter itself."""
    module = adapter.partition(":")[0]
    return module.replace(".", "/") + ".py" if module.startswith("verify.") else module.split(".")[0]
