"""The command line of a race, beyond what the suite's own options say."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fixtures.expansion.shapes import COSTS
from verify.bench.contestant import PLAIN
from verify.options import Options, read_options
from verify.values import choose

DEFAULT_CONCURRENCY = (1, 4, 16, 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """What races against what, on which work; paths are absolute. `common` are the suite's: decoder, models, device, seed.

    `cost` makes the suite's own models as expensive as one of `fixtures.expansion.COSTS`. `minutes` is how long to measure,
    about. `fail_below`: the least speed-up, at the lower end of its interval, that is not a failure.
    """

    common: Options
    baseline: str
    cost: str | None
    concurrency: tuple[int, ...]
    num_draft_tokens: int
    baseline_num_draft_tokens: int
    max_new_tokens: int
    prompt_tokens: int
    temperature: float
    minutes: float
    verdict: Path | None
    unjudged: bool
    fail_below: float | None
    out: Path | None


def add_options(parser: pytest.Parser) -> None:
    """Add the options; values are checked by `read_bench_options`."""
    group = parser.getgroup("verify bench", "speed of a speculative decoder")

    def option(name: str, text: str, **kwargs: Any) -> None:
        group.addoption(f"--{name}", dest=f"bench_{name.replace('-', '_')}", default=None, help=text, **kwargs)

    option("baseline", f"decoder to race against, named as --decoder is (default: {PLAIN}, decoding without drafts)")
    option("cost", f"cost of the suite's own target: {', '.join(COSTS)} (default: as it is)")
    option("concurrency", "requests at once (default: 1,4,16,64)", metavar="N,N,...")
    option("num-draft-tokens", "drafts a round (default: 5)", metavar="K")
    option("baseline-num-draft-tokens", "drafts a round of the baseline (default: the same)", metavar="K")
    option("max-new-tokens", "tokens a request (default: 64)", metavar="N")
    option("prompt-tokens", "tokens a prompt (default: 64)", metavar="N")
    option("temperature", "0 is greedy (default: 0)", metavar="T")
    option("minutes", "how long to measure, about (default: 2)", metavar="M")
    option("verdict", "results.json of the decoder's judgement, or its folder (default: the newest)", metavar="PATH")
    option("unjudged", "report a speed although the decoder has no verdict of pass", action="store_true")
    option("fail-below", "fail where the lower end of the speed-up's interval is below X", metavar="X")
    option("out", "folder of the report (default: reports/local/bench/...)", metavar="DIR")


def read_bench_options(config: pytest.Config) -> BenchOptions:
    """Check and collect; raise `pytest.UsageError` with value, rule and remedy."""
    common = read_options(config)

    def given(name: str) -> Any:
        return getattr(config.option, f"bench_{name}", None)

    def number(name: str, default: float, *, least: float) -> float:
        said = given(name.replace("-", "_"))
        try:
            value = default if said is None else float(said)
        except ValueError:
            value = math.nan
        if not least <= value < math.inf:
            raise pytest.UsageError(f"--{name} {said!r} must be a number of at least {least:g}, such as {default:g}")
        return value

    def whole(name: str, default: int, *, least: int) -> int:
        value = number(name, default, least=least)
        if value != int(value):
            raise pytest.UsageError(f"--{name} {value:g} must be a whole number, such as {default}")
        return int(value)

    if common.door != "decoder":
        raise pytest.UsageError(
            f"{common.decoder!r} is no decoder but came as {common.door}; decoders race here. Use --decoder"
        )
    if given("cost") and common.target:
        raise pytest.UsageError("--cost with --target: it makes the suite's own models expensive; give one of them")
    num_draft_tokens = whole("num-draft-tokens", 5, least=0)
    base = config.invocation_params.dir
    return BenchOptions(
        common=common,
        baseline=given("baseline") or PLAIN,
        cost=given("cost") and choose("--cost", given("cost"), tuple(COSTS)),
        concurrency=_concurrency(given("concurrency")),
        num_draft_tokens=num_draft_tokens,
        baseline_num_draft_tokens=whole("baseline-num-draft-tokens", num_draft_tokens, least=0),
        max_new_tokens=whole("max-new-tokens", 64, least=2),
        prompt_tokens=whole("prompt-tokens", 64, least=1),
        temperature=number("temperature", 0.0, least=0.0),
        minutes=number("minutes", 2.0, least=0.0),
        verdict=base / given("verdict") if given("verdict") else None,
        unjudged=bool(given("unjudged")),
        fail_below=None if given("fail_below") is None else number("fail-below", 0.95, least=0.0),
        out=base / given("out") if given("out") else None,
    )


def _concurrency(said: str | None) -> tuple[int, ...]:
    if said is None:
        return DEFAULT_CONCURRENCY
    parts = said.split(",")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise pytest.UsageError(f"--concurrency {said!r} must be whole numbers of at least 1, such as 1,4,16,64")
    return tuple(sorted({int(part) for part in parts}))
