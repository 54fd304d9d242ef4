"""Whole runs of the suite on correct decoders, each with a seed of its own: how many raise an alarm.

`python -m tests.measurements.whole_runs [--runs 300] [--profile smoke] [--decoders dspark-classic dspark ...] [--parallel 2]`

The runs are lines of `runs.jsonl` beside the report: a measurement that was stopped goes on where it was, also after a checkout;
`--page` reports what there is.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tests.measurements.ledger import Entry, interval, read_lines, shown
from tests.mutants.trial import LOG, results_of, start_trial

ROOT = Path(__file__).parents[2]
# Prompt lookup is a third as dear as a draft model: three of its runs for each of the others.
DECODERS = ("dspark", "dspark-classic", *("dspark-ngram", "transformers-ngram") * 3)
LEDGER = "runs.jsonl"
FALSE_ALARM = 1e-6


def run_suite(job: Entry) -> Entry:
    """One run in a process of its own; what it found, and how long it took."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = ("--profile", job["profile"], "--seed", str(job["seed"]))
        process = start_trial(job["decoder"], (), folder, *options)
        process.join()
        results, log = results_of(folder), (folder / LOG).read_text()
    entry: Entry = {"job": job, "exit_code": process.exitcode, "seconds": round(time.monotonic() - started, 1)}
    if results is None:
        return entry | {"verdict": "none", "output": log[-2000:]}
    bad = [check for check in results["checks"] if check["verdict"] in ("fail", "error", "inconclusive")]
    return entry | {
        "verdict": results["verdict"],
        "commit": results["commit"],
        "num_checks": len(results["checks"]),
        "bad": [{"id": check["id"], "verdict": check["verdict"], "reason": check["reason"]} for check in bad],
        "log10_wealth": [
            wealth
            for check in results["checks"]
            if (wealth := check["details"]["data"].get("log10_wealth")) is not None
        ],
    }


def jobs_of(*, runs: int, profile: str, decoders: list[str], first_seed: int) -> list[Entry]:
    """One job a run; the decoders take turns."""
    return [
        {"decoder": decoders[index % len(decoders)], "profile": profile, "seed": first_seed + index}
        for index in range(runs)
    ]


def measure(path: Path, jobs: list[Entry], *, parallel: int) -> list[Entry]:
    """Do the jobs that the file does not hold; one line is appended as each ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done = {json.dumps(entry["job"]): entry for entry in read_lines(path)}
    left = [job for job in jobs if json.dumps(job) not in done]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress, path.open("a") as file, ThreadPoolExecutor(parallel) as pool:
        task = progress.add_task("whole runs", total=len(jobs), completed=len(jobs) - len(left))
        for future in as_completed([pool.submit(run_suite, job) for job in left]):
            entry = future.result()
            done[json.dumps(entry["job"])] = entry
            file.write(json.dumps(entry) + "\n")
            file.flush()
            progress.advance(task)
    return [done[json.dumps(job)] for job in jobs]


def summarise(entries: list[Entry], command: str) -> Entry:
    """Counts with intervals, over all decoders and for each."""
    kinds: dict[str, Entry] = {}
    for name in ("all", *dict.fromkeys(entry["job"]["decoder"] for entry in entries)):
        here = [entry for entry in entries if name in ("all", entry["job"]["decoder"])]
        counts = {
            verdict: sum(entry["verdict"] == verdict for entry in here) for verdict in ("pass", "fail", "inconclusive")
        }
        counts["other"] = len(here) - sum(counts.values())
        kinds[name] = {
            "runs": len(here),
            "counts": counts,
            "intervals": {verdict: interval(count, len(here)) for verdict, count in counts.items()},
            "seconds": sum(entry["seconds"] for entry in here) / len(here),
        }
    commits = Counter(entry.get("commit", "unknown") for entry in entries)
    wealths = [wealth for entry in entries for wealth in entry.get("log10_wealth", [])]
    return {
        "command": command,
        "commits": dict(commits),
        "kinds": kinds,
        "num_bets": len(wealths),
        "largest_log10_wealth": max(wealths, default=0.0),
        "bets_above": {str(power): sum(wealth >= power for wealth in wealths) for power in (1, 2, 3)},
        "bad": [
            {**entry["job"], **check, "exit_code": entry["exit_code"]}
            for entry in entries
            for check in entry.get("bad", [])
        ],
        "without_results": [entry for entry in entries if entry["verdict"] == "none"],
    }


def short(commit: str) -> str:
    """The beginning of a commit, and whether the working tree differed."""
    name, dirty, _ = commit.partition("-dirty")
    return name[:7] + dirty


def page(result: Entry) -> str:
    """The Markdown page."""
    every = result["kinds"]["all"]
    dirty = any("-dirty" in commit for commit in result["commits"])
    lines = [
        "# Whole runs on correct decoders",
        "",
        f"Made by `{result['command']}`: every run in a process of its own with a seed of its own. A fail is a false alarm: every decoder here is "
        f"correct. Promised: at most {FALSE_ALARM:g} a run for all statistical checks together, and none for the others. Intervals are "
        "Clopper-Pearson, 95%.",
        "",
        "Commits: " + ", ".join(f"{short(commit)} ({count} runs)" for commit, count in result["commits"].items()) + ".",
        *(["`-dirty`: the working tree differed, if only by the ledger that these runs wrote in it."] if dirty else []),
        "",
        "| decoder | runs | fail | inconclusive | neither pass, fail nor inconclusive | seconds a run |",
        "|---|---|---|---|---|---|",
    ]
    for name, kind in result["kinds"].items():
        rates = " | ".join(
            f"{kind['counts'][each]}: {shown(kind['counts'][each], kind['runs'])}"
            for each in ("fail", "inconclusive", "other")
        )
        lines.append(f"| {name} | {kind['runs']} | {rates} | {kind['seconds']:.0f} |")
    above = ", ".join(f"{count} reached 10^{power}" for power, count in result["bets_above"].items())
    lines += [
        "",
        f"{every['runs']} runs can show a rate of alarms no smaller than {every['intervals']['fail'][1]:.3g}; that it is {FALSE_ALARM:g} follows from Ville's "
        f"inequality and from `reports/false_alarms`, not from counting. More telling: of {result['num_bets']} bets in these runs {above} (a correct "
        f"decoder may do so in at most 1 of 10^k); the largest reached 10^{result['largest_log10_wealth']:.2f}, and the alarm is beyond 10^7.",
        "",
    ]
    lines += [
        f"- {each['verdict']}: {each['decoder']}, seed {each['seed']}, `{each['id']}`: {each['reason']}"
        for each in result["bad"]
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run, or go on running, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--profile", default="smoke")
    parser.add_argument("--decoders", nargs="+", default=list(DECODERS))
    parser.add_argument("--seed", type=int, default=1000, help="of the first run; the others count on from it")
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "whole_runs")
    parser.add_argument("--page", action="store_true", help="run nothing: report the runs there are")
    arguments = parser.parse_args()
    jobs = jobs_of(
        runs=arguments.runs, profile=arguments.profile, decoders=arguments.decoders, first_seed=arguments.seed
    )
    ledger = arguments.out / LEDGER
    entries = read_lines(ledger) if arguments.page else measure(ledger, jobs, parallel=arguments.parallel)
    if not entries:
        raise SystemExit(f"{ledger} holds no run; leave out --page to make some")
    command = f"python -m tests.measurements.whole_runs --runs {arguments.runs} --profile {arguments.profile} --seed {arguments.seed}"
    result = summarise(entries, f"{command} --decoders {' '.join(arguments.decoders)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    (arguments.out / "README.md").write_text(page(result))


if __name__ == "__main__":
    main()
