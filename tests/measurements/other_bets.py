"""The bets beside `Wealth` that spend false-alarm budget, where nothing is wrong: how often any of them reaches 1/alpha.

`python -m tests.measurements.other_bets [--runs 4000] [--seed 1]`
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.measurements.false_alarms import ALPHAS, ROOT, exceeds
from tests.measurements.ledger import Entry, resume, shown
from verify.betting.evidence import Floats
from verify.checks import randomness
from verify.checks.acceptance import largest_log_wealth, whole_rounds
from verify.checks.two_sample import judge_two_samples
from verify.kernel.counts import CountBet, Table
from verify.models.observer import Round
from verify.protocol import Request

ANSWERS = 384  # of the acceptance check in the exhaustive profile
REQUEST = Request(prompt_token_ids=(1,), max_new_tokens=40, num_draft_tokens=4)
Keep = Callable[[list[Round], Request], list[Round]]


def acceptance(rng: np.random.Generator, keep: Keep = whole_rounds) -> float:
    """The standard rule at random contexts: the largest wealth, in nats, of the bet on how often it accepts."""
    expected: list[float] = []
    accepted: list[bool] = []
    for _ in range(ANSWERS):
        chances = rng.beta(6, 4, size=REQUEST.max_new_tokens)
        outcomes = rng.random(REQUEST.max_new_tokens) < chances
        for one in keep(_rounds(outcomes), REQUEST):
            tried = slice(one.output_offset, one.output_offset + min(one.num_accepted + 1, one.num_draft_tokens))
            expected += chances[tried].tolist()
            accepted += outcomes[tried].tolist()
    return largest_log_wealth(np.array(expected), np.array(accepted))


def _rounds(outcomes: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> list[Round]:
    """Rounds of one answer, given by output position whether a draft would be accepted there."""
    rounds: list[Round] = []
    position = 0
    while position < REQUEST.max_new_tokens:
        drafted = min(REQUEST.num_draft_tokens, REQUEST.max_new_tokens - position - 1)
        block = outcomes[position : position + drafted]
        num_accepted = drafted if block.all() else int(np.argmin(block))
        rounds.append(Round(position, drafted, num_accepted))
        position += num_accepted + 1
    return rounds


def streams(rng: np.random.Generator) -> float:
    """First tokens of 400 independent streams: the bet that one predicts the next."""
    law = _law(rng, 4)
    return float(randomness.largest_log_wealth(law, rng.choice(4, p=law, size=(1, 400)))[0])


def repetition(rng: np.random.Generator) -> float:
    """One output of 512 tokens of one law: the bet that it repeats itself at some lag."""
    law = _law(rng, 64)
    token_ids = rng.choice(64, p=law, size=512)
    return randomness.largest_log_wealth_of_lags(law[token_ids], token_ids)


def two_samples(rng: np.random.Generator) -> float:
    """Outputs of one law under two names, 8 of each of 8 prompts: the bet on which is which."""
    table = np.array([_law(rng, 12) for _ in range(12)])

    def outputs() -> list[list[list[int]]]:
        return [[_walk(rng, table, first) for _ in range(8)] for first in range(8)]

    finding = judge_two_samples(outputs(), outputs(), alpha=0.5)
    return float(finding.details["largest_log_wealth"])


def _walk(rng: np.random.Generator, table: Floats, token_id: int) -> list[int]:
    output: list[int] = []
    while len(output) < 12:
        token_id = int(rng.choice(len(table), p=table[token_id]))
        output.append(token_id)
    return output


def counts(rng: np.random.Generator) -> float:
    """Outcomes of three known laws in 50 portions: the bet of the kernel door, with a mistake of its own for each."""
    laws = [_law(rng, size) for size in (2, 5, 40)]
    bet = CountBet([Table(law=law, mistakes={"mistake": _law(rng, law.size)}) for law in laws], alpha=0.5)
    for _ in range(50):
        bet.update([rng.multinomial(200, law) for law in laws])
    return bet.largest_log_wealth


def _law(rng: np.random.Generator, size: int) -> Floats:
    law: Floats = rng.dirichlet(np.ones(size))
    return law


OTHER_BETS: dict[str, Callable[[np.random.Generator], float]] = {
    "acceptance is 1 - TV": acceptance,
    "streams are independent": streams,
    "two samples": two_samples,
    "counts (kernel door)": counts,
    "streams do not repeat": repetition,
}


def crossings_of(name: str, *, seed: list[int], runs: int) -> Entry:
    """Runs of one bet whose wealth ever reached 1/alpha."""
    peaks = np.array([OTHER_BETS[name](np.random.default_rng([*seed, run])) for run in range(runs)])
    return {"crossed": {str(alpha): int(np.sum(peaks >= -np.log(alpha))) for alpha in ALPHAS}}


def page(result: Entry) -> str:
    """The Markdown page."""
    lines = [
        "# False alarms of the other bets",
        "",
        f"Made by `{result['command']}`: {result['runs']} runs of each bet where nothing is wrong, at the size of long suite runs. A run "
        "crosses if the wealth *ever* reached 1/alpha. Intervals are Clopper-Pearson, 95%.",
        "",
        "| bet | alpha | crossed | above alpha, at confidence 0.99 |",
        "|---|---|---|---|",
    ]
    for name, crossed in result["crossed"].items():
        for alpha in ALPHAS:
            count = crossed[str(alpha)]
            above = "**yes**" if exceeds(count, result["runs"], alpha) else "no"
            lines.append(f"| {name} | {alpha:g} | {shown(count, result['runs'])} | {above} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure, or go on measuring, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=4000, help="of each bet, in hundreds (default: 4000)")
    parser.add_argument("--seed", type=int, default=1, help="default: 1")
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "false_alarms")
    parser.add_argument("--work", type=Path, default=ROOT / "reports" / "local" / "measurements")
    arguments = parser.parse_args()
    jobs: list[Entry] = [
        {"bet": name, "runs": 100, "seed": [arguments.seed, index, number]}
        for number in range(arguments.runs // 100)
        for index, name in enumerate(OTHER_BETS)
    ]
    done = resume(
        arguments.work / "other_bets.jsonl",
        jobs,
        lambda job: crossings_of(job["bet"], seed=job["seed"], runs=job["runs"]),
        label="other bets",
    )
    result: Entry = {
        "command": f"python -m tests.measurements.other_bets --runs {arguments.runs} --seed {arguments.seed}",
        "runs": arguments.runs // 100 * 100,
        "crossed": {
            name: {
                str(alpha): sum(entry["crossed"][str(alpha)] for entry in done if entry["job"]["bet"] == name)
                for alpha in ALPHAS
            }
            for name in OTHER_BETS
        },
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "other_bets.json").write_text(json.dumps(result, indent=1) + "\n")
    (arguments.out / "OTHER_BETS.md").write_text(page(result))


if __name__ == "__main__":
    main()
