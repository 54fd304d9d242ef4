"""Power, measured: tokens until a bug of known size is rejected at alpha 1e-9, by betting and by the tests that others use.

`python -m tests.measurements.power [--runs 100] [--seed 1]`
"""

import argparse
import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from tests.measurements.bulk import Contexts, law_with_error, tokens_until_rejection
from tests.measurements.ledger import Entry, resume, shown
from tests.measurements.pictures import Line, draw_lines
from tests.measurements.rivals import SAMPLE_SIZES, ChiSquare, KernelTest, ratio_test_rejects
from tests.measurements.world import Floats, tempered
from verify.betting.library import library
from verify.models.pairs import Relation, TableSpec, draft_probs_of, target_probs_of

ALPHA = 1e-9
POWER = 0.95
FIXED_TOKENS = 10_000
LIMIT = 1e12
UNKNOWN_LIMIT = 1e6
SIZES = (0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4)
SETTINGS = {"32 contexts of 16 tokens": (32, 16), "one context of 10 tokens": (1, 10)}
BUGS = (
    "residual_not_subtracted",
    "recovered_from_draft",
    "residual_absolute",
    "residual_softmax",
    "residual_argmax",
    "accept_without_coin",
    "acceptance_too_generous[ratio plus 0.1]",
    "greedy_draft_as_soft",
    "draft_leak",
    "no_temperature",
)
RIVALS = {"chi_square": "chi-square", "kernel": "MMD"}
UNKNOWN = "ids off by one"
ROOT = Path(__file__).parents[2]


@cache
def contexts_of(num_contexts: int, vocab_size: int) -> Contexts:
    """Random contexts at temperature 0.7 with a draft that has nothing to do with them, so that every bug has a large size."""
    spec = TableSpec(vocab_size=vocab_size, relation=Relation.UNRELATED, seed=5, num_rows=num_contexts)
    plain = target_probs_of(spec)
    target, draft = (tempered(law.numpy(), 0.7) for law in (plain, draft_probs_of(spec, plain)))
    return Contexts(target=target, draft=draft, unprocessed=plain.numpy())


def wrong_law(contexts: Contexts, bug: str) -> Floats:
    """The law of the emitted tokens under a bug that always acts, [C, V]; `UNKNOWN` is no hypothesis of the library."""
    if bug == UNKNOWN:
        return np.roll(contexts.target, 1, axis=1)
    law = contexts.law_of(next(each for each in library() if each.label == bug))
    if law is None:
        raise ValueError(
            f"bug {bug!r} needs laws that these contexts lack; choose one that needs target and draft only"
        )
    return law


def measure(job: Entry) -> Entry:
    """One bug at one size: tokens until rejection for every test; None where the bug cannot be that large."""
    contexts = contexts_of(*SETTINGS[job["setting"]])
    emitted = law_with_error(contexts, wrong_law(contexts, job["bug"]), job["total_variation"])
    if emitted is None:
        return {"betting": None}
    rng = np.random.default_rng(job["seed"])
    limit = UNKNOWN_LIMIT if job["bug"] == UNKNOWN else LIMIT
    times = tokens_until_rejection(contexts, emitted, alpha=ALPHA, num_runs=job["runs"], limit=limit, rng=rng)
    chi_square, kernel = ChiSquare(target=contexts.target), KernelTest(target=contexts.target)
    failed = sum(ratio_test_rejects(contexts.target, emitted, rng) for _ in range(job["runs"]))
    return {
        "betting": {"mean": float(times.mean()), "quantile": float(np.quantile(times, POWER)), "times": times.tolist()},
        "chi_square": chi_square.tokens_needed(emitted, alpha=ALPHA, power=POWER),
        "chi_square_power_at_fixed": chi_square.power(emitted, num_tokens=FIXED_TOKENS, alpha=ALPHA),
        "kernel": kernel.tokens_needed(emitted, alpha=ALPHA, power=POWER),
        "ratio_test_failed": failed,
        "runs": job["runs"],
    }


def middle(entries: list[Entry], read: Callable[[Entry], float]) -> float:
    """Geometric mean over the bugs."""
    values = [read(entry) for entry in entries]
    return math.inf if any(map(math.isinf, values)) else float(np.exp(np.mean(np.log(values))))


def compare(entries: list[Entry]) -> list[Entry]:
    """One row a setting and size: the tests over the bugs of the library."""
    rows = []
    for setting in SETTINGS:
        for size in SIZES:
            here = [
                entry
                for entry in entries
                if entry["betting"]
                and entry["job"]["bug"] != UNKNOWN
                and (entry["job"]["setting"], entry["job"]["total_variation"]) == (setting, size)
            ]
            if not here:
                continue
            runs = sum(entry["runs"] for entry in here)
            failed = sum(entry["ratio_test_failed"] for entry in here)
            rows.append(
                {
                    "setting": setting,
                    "total_variation": size,
                    "bugs": len(here),
                    "betting_mean": middle(here, lambda entry: float(entry["betting"]["mean"])),
                    "betting_quantile": middle(here, lambda entry: float(entry["betting"]["quantile"])),
                    "chi_square": middle(here, lambda entry: float(entry["chi_square"])),
                    "kernel": middle(here, lambda entry: float(entry["kernel"])),
                    "chi_square_at_fixed": float(np.mean([entry["chi_square_power_at_fixed"] for entry in here])),
                    "ratio_test": failed / runs,
                    "ahead": {
                        what: {rival: sum(entry["betting"][what] < entry[rival] for entry in here) for rival in RIVALS}
                        for what in ("mean", "quantile")
                    },
                }
            )
    return rows


def ratio_test_false_alarms(*, runs: int, seed: int) -> Entry:
    """How often the ratio rule fails a correct decoder."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, (num_contexts, vocab_size) in SETTINGS.items():
        target = contexts_of(num_contexts, vocab_size).target
        found[name] = sum(ratio_test_rejects(target, target, rng) for _ in range(runs))
    return {"runs": runs, "failed": found}


def number(value: float) -> str:
    """A number of tokens, for a table."""
    return "never" if math.isinf(value) else f"{value:,.0f}" if value < 1e5 else f"{value:.2g}"


def page(result: Entry) -> str:
    """The Markdown page."""
    lines = [
        "# Power, measured",
        "",
        f"Made by `{result['command']}`. Ten bugs of the library, each mixed into a correct decoder so that the mean total variation of its "
        f"tokens is the given size; alpha {ALPHA:g}. All tests get the same tokens, contexts and exact target laws. Numbers are geometric means "
        f"over the bugs that can be that large; {result['runs']} runs each.",
        "",
        "- **betting**: `verify.betting`, the blind account with its whole library, which does not know bug or size. Mean and 95% quantile of "
        "the tokens until rejection. Bets and prior weights are the engine's, read from counts (`bulk.py` says what is left out, all to its "
        "disadvantage).",
        f"- **chi-square**: Pearson's test. Tokens so that a test of a size fixed beforehand has power {POWER:g}: whoever plans it must know the size "
        f"of the bug. Beside it its power with the customary n = {FIXED_TOKENS:,}.",
        f"- **MMD**: kernel two-sample statistic, given the exact target in place of the second sample; n fixed beforehand, power {POWER:g}.",
        "- **ratio rule**: the published rule of vLLM's `test_rejection_sampling_approximates_target_distribution` (`rivals.py` says exactly what was "
        f"implemented): share of runs in which it fails the decoder, after {sum(SAMPLE_SIZES):,} tokens. It has no alpha.",
        "",
        "| setting | size (TV) | bugs | betting, mean | betting, 95% | chi-square, 95% | MMD, 95% | chi-square, n = 10,000 | ratio rule fails |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        lines.append(
            f"| {row['setting']} | {row['total_variation']:g} | {row['bugs']} | {number(row['betting_mean'])} | {number(row['betting_quantile'])} | "
            f"{number(row['chi_square'])} | {number(row['kernel'])} | {row['chi_square_at_fixed']:.2g} | {row['ratio_test']:.2f} |"
        )
    alarms = result["ratio_test_false_alarms"]
    lines += [
        "",
        "![tokens until rejection](power.svg)",
        "",
        *(
            f"- In {name} the ratio rule fails a correct decoder in {shown(failed, alarms['runs'])} of its runs."
            for name, failed in alarms["failed"].items()
        ),
        "",
        "## What it shows",
        "",
        *verdicts(result["rows"]),
        "- No number of tokens makes the ratio rule see a small bug: the distance to the target stops shrinking only when it reaches the bug's own, "
        "and that must be above about a twentieth of the distance of ten tokens.",
        "- Contexts of a real decoder do not repeat. There the chi-square and the MMD have one token a context, and neither is a test any more; the "
        "numbers above are the best case for them. Betting does not care.",
        "",
        f"## What no hypothesis describes: {UNKNOWN}",
        "",
        "The target's law with all ids shifted by one is in no library: betting must win on hypotheses that happen to resemble it, and chi-square, "
        f"which looks everywhere, may be ahead (betting was stopped after {UNKNOWN_LIMIT:,.0f} tokens, and its learners are left out here):",
        "",
        "| setting | size (TV) | betting, mean | chi-square | MMD |",
        "|---|---|---|---|---|",
        *(
            f"| {entry['job']['setting']} | {entry['job']['total_variation']:g} | {number(entry['betting']['mean'])} | "
            f"{number(entry['chi_square'])} | {number(entry['kernel'])} |"
            for entry in result["unknown"]
        ),
        "",
        "The library is the power of the test; the exact law (chapter 2) is what sees everything.",
        "",
    ]
    return "\n".join(lines)


def verdicts(rows: list[Entry]) -> list[str]:
    """Ahead or not, per setting and rival, counted and not argued."""
    lines = []
    for setting in SETTINGS:
        here = [row for row in rows if row["setting"] == setting]
        cells = sum(row["bugs"] for row in here)
        for rival, name in RIVALS.items():
            mean, quantile = (sum(row["ahead"][what][rival] for row in here) for what in ("mean", "quantile"))
            factors = [row[rival] / row["betting_mean"] for row in here]
            lines.append(
                f"- {setting}, {name}: betting needs fewer tokens on average in {mean} of {cells} bugs and sizes, and fewer in 95% of its runs "
                f"in {quantile}; {name} needs {min(factors):.2g} to {max(factors):.2g} times betting's mean."
            )
    return lines


def main() -> None:
    """Measure, or go on measuring, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "power")
    parser.add_argument("--work", type=Path, default=ROOT / "reports" / "local" / "measurements")
    arguments = parser.parse_args()
    jobs = [
        {"setting": setting, "bug": bug, "total_variation": size, "runs": arguments.runs, "seed": arguments.seed}
        for setting in SETTINGS
        for size in SIZES
        for bug in (*BUGS, UNKNOWN)
        if bug != UNKNOWN or size in (0.1, 0.01)
    ]
    entries = resume(arguments.work / "power.jsonl", jobs, measure, label="power")
    result: Entry = {
        "command": f"python -m tests.measurements.power --runs {arguments.runs} --seed {arguments.seed}",
        "alpha": ALPHA,
        "runs": arguments.runs,
        "rows": compare(entries),
        "ratio_test_false_alarms": ratio_test_false_alarms(runs=2000, seed=arguments.seed),
        "unknown": [without_times(entry) for entry in entries if entry["job"]["bug"] == UNKNOWN and entry["betting"]],
        "bugs": [without_times(entry) for entry in entries if entry["job"]["bug"] != UNKNOWN and entry["betting"]],
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    (arguments.out / "README.md").write_text(page(result))
    draw(arguments.out / "power.svg", result["rows"])


def without_times(entry: Entry) -> Entry:
    """The entry without the single runs."""
    return entry | {"betting": {name: value for name, value in entry["betting"].items() if name != "times"}}


def draw(path: Path, rows: list[Entry]) -> None:
    """Tokens over size, one panel a setting."""
    panels = {}
    for setting in SETTINGS:
        here = [row for row in rows if row["setting"] == setting]
        sizes = [row["total_variation"] for row in here]
        panels[setting] = {
            "betting (knows neither bug nor size), mean": Line(x=sizes, y=[row["betting_mean"] for row in here]),
            "chi-square, n for 95% power": Line(x=sizes, y=[row["chi_square"] for row in here], marker="s"),
            "MMD, n for 95% power": Line(x=sizes, y=[row["kernel"] for row in here], marker="^"),
            "ratio rule (vLLM), where it fails 95% of the runs": Line(
                x=sizes,
                y=[float(sum(SAMPLE_SIZES)) if row["ratio_test"] >= POWER else None for row in here],
                marker="x",
            ),
            "betting, 95% of its runs": Line(
                x=sizes, y=[row["betting_quantile"] for row in here], marker="", dashed=True
            ),
        }
    draw_lines(
        path,
        panels,
        xlabel="size of the bug: mean total variation of a token",
        ylabel="tokens until rejection at alpha 1e-9",
        hline=(FIXED_TOKENS, "n = 10,000"),
    )


if __name__ == "__main__":
    main()
