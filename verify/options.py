"""The command line of a run: what may be said, what was said, and how to say it again."""

import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args

import pytest

from verify import values
from verify.declared import WORKER, names_engine
from verify.doors import DOORS, Door

Profile: TypeAlias = Literal["smoke", "default", "exhaustive"]
PROFILES: tuple[Profile, ...] = get_args(Profile)
DEVICES = ("cpu", "cuda")
DTYPES = ("float64", "float32", "bfloat16")
DEFAULT_DECODER = "dspark"
DEFAULT_REPORT_DIR = Path("reports") / "local"
DEFAULT_FALSE_ALARM = 1e-6
OWN_SUITE = Path(__file__).parent / "suite"
NAMED_DOORS: tuple[Door, ...] = tuple(door for door in DOORS if door != "engine")  # an engine comes as --decoder


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a run judges and how; paths are absolute.

    `door` is the way in and `decoder` what came through it: a decoder, an engine, a rejection step, or a file of generations.
    `target` and `draft` are checkpoint directories, None for the suite's own models. `false_alarm` is the probability
    that a lossless decoder fails the whole run. `device` and `dtype` are those of the real model pair; synthetic tables
    choose their own. `suite` is the directory whose checks a full run must execute. The five before `worker` are for engines
    (`verify.engines`): their own options, the Python of their environment, and the addresses of servers. `worker` is the
    name of this process among several (pytest-xdist), empty where there is one.
    """

    decoder: str = DEFAULT_DECODER
    door: Door = "decoder"
    target: Path | None = None
    draft: Path | None = None
    device: str = "cpu"
    dtype: str = "float32"
    profile: Profile = "default"
    report_dir: Path = DEFAULT_REPORT_DIR
    xfails: Path | None = None
    require_device: str | None = None
    false_alarm: float = DEFAULT_FALSE_ALARM
    seed: int = 0
    allow_partial: bool = False
    suite: Path = OWN_SUITE
    engine: Mapping[str, str] = field(default_factory=dict)
    engine_python: Path | None = None
    base_url: str | None = None
    baseline_url: str | None = None
    model: str | None = None
    worker: str = ""

    @property
    def models_folder(self) -> Path:
        """Where checkpoint directories are written when an adapter asks for them; each process has its own."""
        return self.report_dir / "models" / self.worker

    @property
    def derives_draft(self) -> bool:
        """Whether the real pair's draft is made from its target: a target is given alone, to something that drafts here."""
        return self.target is not None and self.draft is None and self.door in ("decoder", "verifier")

    @property
    def option(self) -> str:
        """The option that names what is judged; an engine comes as a decoder."""
        return "--decoder" if self.door == "engine" else f"--{self.door}"


def includes(profile: str, minimum: str) -> bool:
    """Whether a run at `profile` executes a check whose minimum profile is `minimum`."""
    order: Sequence[str] = PROFILES
    return order.index(profile) >= order.index(minimum)


def add_options(parser: pytest.Parser) -> None:
    """Add the suite's options; values are checked by `read_options` so that an error can name the nearest valid one."""
    group = parser.getgroup("verify", "speculative decoding conformance")

    def option(name: str, text: str, **kwargs: Any) -> None:
        group.addoption(f"--{name}", dest=f"verify_{name.replace('-', '_')}", default=None, help=text, **kwargs)

    text = (
        "entry point in group verify.decoders or verify.engines, module:attribute, or worker:FILE.py (default: dspark)"
    )
    option("decoder", text, metavar="NAME")
    option("verifier", "judge a rejection step alone instead of a decoder: module:function", metavar="NAME")
    option("generations", "judge logged generations instead: .jsonl, .jsonl.gz or .jsonl.zst", metavar="FILE")
    option("target", "checkpoint directory of the target model", metavar="DIR")
    option("draft", "checkpoint directory of the draft model", metavar="DIR")
    option(
        "engine", "an option of the engine under test; may be given several times", metavar="KEY=VALUE", action="append"
    )
    option("engine-python", "Python of the engine's own virtual environment", metavar="FILE")
    option("base-url", "server under test, such as http://localhost:8000", metavar="URL")
    option("baseline-url", "the same server without speculation", metavar="URL")
    option("model", "name of the model on the server", metavar="NAME")
    option("device", f"device of the real model pair: {', '.join(DEVICES)} (default: cpu)")
    option("dtype", f"dtype of the real model pair: {', '.join(DTYPES)} (default: float32)")
    option("profile", f"how much to run: {', '.join(PROFILES)} (default: default)")
    option("report-dir", f"where reports go (default: {DEFAULT_REPORT_DIR})", metavar="DIR")
    option("xfails", "TOML file with the implementer's expected failures", metavar="FILE")
    option("require-device", "refuse to run without this device", metavar="DEVICE")
    option("false-alarm", "probability that a lossless decoder fails the run (default: 1e-6)", metavar="X")
    option("seed", "seed of the run (default: random, printed)", metavar="N")
    option(
        "allow-partial",
        "let a run of selected checks exit by what ran; without it a partial run exits 11",
        action="store_true",
    )
    for door in NAMED_DOORS:
        text = f"{door} under test where the command line and the environment name nothing to judge"
        parser.addini(f"verify_{door}", text, default="")
    parser.addini("verify_suite", "directory of checks that a full run must execute", default="")


def read_options(config: pytest.Config) -> Options:
    """Check and collect the options; raise `pytest.UsageError` with value, rule and remedy."""

    def given(name: str) -> Any:
        return getattr(config.option, f"verify_{name}", None)

    base = config.invocation_params.dir
    door, under_test = _under_test(config)
    suite = str(config.getini("verify_suite"))
    interpreter, false_alarm = given("engine_python"), given("false_alarm")
    if interpreter and not (base / interpreter).is_file():
        raise pytest.UsageError(
            f"--engine-python {interpreter!r} is not a file; give the Python of the engine's environment"
        )
    python = base / interpreter if interpreter else None
    options = Options(
        decoder=under_test,
        door=door,
        target=values.directory("--target", given("target"), base),
        draft=values.directory("--draft", given("draft"), base),
        device=values.choose("--device", given("device") or "cpu", DEVICES),
        dtype=values.choose("--dtype", given("dtype") or "float32", DTYPES),
        profile=cast(Profile, values.choose("--profile", given("profile") or "default", PROFILES)),
        report_dir=base / (given("report_dir") or DEFAULT_REPORT_DIR),
        xfails=values.file("--xfails", given("xfails"), base, hint="give a TOML file with [[xfail]] tables"),
        require_device=given("require_device") and values.choose("--require-device", given("require_device"), DEVICES),
        false_alarm=DEFAULT_FALSE_ALARM if false_alarm is None else values.probability("--false-alarm", false_alarm),
        seed=values.whole_number("--seed", seed_text(config)),
        allow_partial=bool(given("allow_partial")),
        suite=(config.rootpath / suite).resolve() if suite else OWN_SUITE,
        engine=values.key_values(given("engine") or ()),
        # not resolved: the interpreter of a virtual environment is a link, and knows its environment by the link's place
        engine_python=python and python.absolute(),
        base_url=values.url("--base-url", given("base_url")),
        baseline_url=values.url("--baseline-url", given("baseline_url")),
        model=given("model"),
        worker=worker_id(config),
    )
    _refuse_engine_options(options)
    if door == "generations":
        values.file("--generations", under_test, base, hint="give a log with one generation a line")
        if options.target is None:
            raise pytest.UsageError("--generations without --target: a log is judged by its target; give --target DIR")
    if options.draft and not options.target:
        raise pytest.UsageError("--draft without --target: a draft is judged with its target; give --target DIR too")
    for name, device in (("--device", options.device), ("--require-device", options.require_device)):
        if device == "cuda" and not _has_cuda():
            raise pytest.UsageError(
                f"{name} cuda: torch sees no CUDA device here; run where there is one, or use {name} cpu"
            )
    return options


def worker_id(config: pytest.Config) -> str:
    """The name of this process among pytest-xdist's workers; empty in any other process."""
    return str(getattr(config, "workerinput", {}).get("workerid", ""))


def seed_text(config: pytest.Config) -> str:
    """What --seed says, or a number drawn in its place: once, so that whoever asks again gets the same."""
    given: str | None = getattr(config.option, "verify_seed", None)
    if given is None:
        given = config.option.verify_seed = str(secrets.randbelow(2**32))
    return given


def command_arguments(options: Options, *, base: Path) -> list[str]:
    """The options as arguments, without defaults and without `--xfails`: a waived check is rerun to see it fail."""
    arguments = [options.option, options.decoder]
    for name, path in (("--target", options.target), ("--draft", options.draft)):
        if path is not None:
            arguments += [name, relative(path, base)]
    for key, value in options.engine.items():
        arguments += ["--engine", f"{key}={value}"]
    if options.engine_python is not None:
        arguments += ["--engine-python", relative(options.engine_python, base)]
    pairs = (
        ("--base-url", options.base_url or "", ""),
        ("--baseline-url", options.baseline_url or "", ""),
        ("--model", options.model or "", ""),
        ("--device", options.device, "cpu"),
        ("--dtype", options.dtype, "float32"),
        ("--profile", options.profile, "default"),
        ("--report-dir", relative(options.report_dir, base), str(DEFAULT_REPORT_DIR)),
    )
    for name, value, default in pairs:
        if value != default:
            arguments += [name, value]
    return [*arguments, "--seed", str(options.seed)]


def relative(path: Path, base: Path) -> str:
    """`path` as seen from `base` where it lies inside, else the absolute path."""
    return str(path.relative_to(base)) if path.is_relative_to(base) else str(path)


def _under_test(config: pytest.Config) -> tuple[Door, str]:
    """The one thing to judge: from the command line, else from the environment, else from the ini file."""
    sources: tuple[Callable[[Door], object], ...] = (
        lambda door: getattr(config.option, f"verify_{door}", None),
        lambda door: os.environ.get(f"VERIFY_{door.upper()}"),
        lambda door: config.getini(f"verify_{door}"),
    )
    for source in sources:
        named = {door: str(value) for door in NAMED_DOORS if (value := source(door))}
        if len(named) > 1:
            both = " and ".join(f"--{door} {value}" for door, value in named.items())
            raise pytest.UsageError(f"{both}: a run judges one thing; give one of them")
        for door, value in named.items():
            return "engine" if door == "decoder" and names_engine(value) else door, value
    return "decoder", DEFAULT_DECODER


def _refuse_engine_options(options: Options) -> None:
    """Options of engines where no engine is judged would be ignored silently."""
    if options.door == "engine":
        file = options.decoder.removeprefix(WORKER)
        if options.decoder.startswith(WORKER) and not file.endswith(".py"):
            raise pytest.UsageError(f"--decoder {options.decoder!r}: {file!r} is no Python file; give worker:FILE.py")
        return
    for name in ("engine", "engine_python", "base_url", "baseline_url", "model"):
        if getattr(options, name):
            raise pytest.UsageError(
                f"--{name.replace('_', '-')} is an option of engines, and {options.decoder!r} is none; leave it out"
            )


def _has_cuda() -> bool:
    import torch  # here, because a run on the CPU need not wait for this import to learn that its options are fine

    return torch.cuda.is_available()
