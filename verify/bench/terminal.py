"""A race as tables for the terminal."""

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from verify.bench.schema import BenchResults, Estimate


def tables(results: BenchResults) -> Iterator[Table | Text]:
    """What matters first: the verdict, the speed-up, then everything else."""
    yield from warnings(results)
    if results.models.statement:
        yield Text(results.models.statement)
    if results.speed:
        yield _speed(results)
    if results.latency:
        yield _latency(results)
    if results.acceptance:
        yield _acceptance(results)
    if results.shares:
        yield _shares(results)
    if results.limit:
        yield Text(limit_sentence(results))


def warnings(results: BenchResults) -> Iterator[Text]:
    """What a reader must know before any number."""
    for standing in results.standings:
        if standing.verdict != "pass":
            text = f"{standing.name}: verdict {standing.verdict.upper()} ({standing.reason})"
            loud = standing.name == results.decoder
            yield Text(
                f"NOT JUDGED LOSSLESS. {text}" if loud else f"the baseline {text}",
                style="bold red" if loud else "yellow",
            )
    before, cpus = results.environment.get("load before", ""), results.environment.get("cpus", "")
    if before.replace(".", "").isdigit() and cpus.isdigit() and float(before) > 1 + int(cpus):
        yield Text(
            f"the machine was busy: load {before} on {cpus} processors; seconds mean little, and intervals are wide",
            style="yellow",
        )


def ranged(value: Estimate, digits: int = 2) -> str:
    """An estimate with its interval."""
    return f"{value.estimate:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"


def limit_sentence(results: BenchResults) -> str:
    """How far the target's forwards are from the machine's limit."""
    limit = results.limit
    if limit is None:
        return ""
    megabytes = results.models.target_bytes_per_forward / 1e6
    reading, multiplying = 1e3 * limit.seconds_to_read, 1e3 * limit.seconds_to_multiply
    sentences = (
        f"Limit: a forward reads {megabytes:.0f} MB of weights",
        f"at the measured copy rate of {limit.copy_bytes_per_s / 1e9:.1f} GB/s that takes {reading:.2f} ms",
        f"{limit.plain_tokens_per_s:.0f} plain tokens/s",
        f"a verification's arithmetic takes {multiplying:.2f} ms at {limit.matmul_flops_per_s / 1e9:.0f} GFLOP/s",
        f"measured {1e3 * limit.seconds_measured:.2f} ms, {limit.share_reached:.0%} of the limit.",
    )
    return "; ".join(sentences)


def _speed(results: BenchResults) -> Table:
    table = Table("at once", "contestant", "tokens/s", "per user", f"speed-up of {results.decoder}", "same output")
    for speed in results.speed:
        for name, rate in speed.tokens_per_s.items():
            mark = (
                " *"
                if name == speed.baseline
                else ""
                if speed.batched[name] or speed.concurrency == 1
                else " (in turn)"
            )
            ratio = speed.speed_up.get(name)
            table.add_row(
                str(speed.concurrency),
                f"{name}{mark}",
                ranged(rate, 1),
                f"{speed.tokens_per_s_per_user[name]:.1f}",
                ranged(ratio) if ratio else "",
                speed.identical_outputs.get(name, ""),
            )
        table.add_section()
    table.caption = "* the baseline that counts; brackets are 95% intervals over paired turns"
    return table


def _latency(results: BenchResults) -> Table:
    table = Table("latency, ms", "first token", "later token", "between chunks", "99th of 100")
    for name, each in results.latency.items():
        table.add_row(
            name,
            ranged(_in_ms(each.time_to_first_token)),
            ranged(_in_ms(each.time_per_later_token)) if each.time_per_later_token else "all at once",
            ranged(_in_ms(each.between_chunks)) if each.between_chunks else "does not stream",
            f"{1e3 * each.between_chunks_99th:.2f}" if each.between_chunks_99th is not None else "",
        )
    return table


def _acceptance(results: BenchResults) -> Table:
    table = Table("acceptance", "tokens a round", "conditional by position", "forwards a token", "rounds")
    for name, each in results.acceptance.items():
        table.add_row(
            name,
            ranged(each.mean_acceptance_length) if each.mean_acceptance_length else each.source,
            " ".join(f"{share.estimate:.2f}" for share in each.conditional),
            f"{each.target_forwards_per_token:.3f}",
            str(each.rounds),
        )
    return table


def _shares(results: BenchResults) -> Table:
    parts = list(next(iter(results.shares.values())).shares)
    table = Table("share of time", *parts, "ms a verification", "peak MB")
    for name, each in results.shares.items():
        peak = results.memory[name].peak_bytes if name in results.memory else None
        table.add_row(
            name,
            *(f"{each.shares[part]:.0%}" for part in parts),
            f"{1e3 * each.seconds_per_verification:.2f}" if each.seconds_per_verification else "",
            "" if peak is None else f"{peak / 1e6:.0f}",
        )
    return table


def _in_ms(value: Estimate) -> Estimate:
    return Estimate(low=1e3 * value.low, estimate=1e3 * value.estimate, high=1e3 * value.high)
