"""What a check holds in its hands: the `check` marker and the `judge` fixture's type."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from verify.options import PROFILES, Options, Profile
from verify.results import Evidence, Finding, Verdict

if TYPE_CHECKING:
    from verify.registry import DecoderFactory

MARKER = "verify_check"


class ContractViolation(Exception):
    """The decoder broke its contract: the check fails with this message. `details` is JSON-ready evidence."""

    def __init__(self, message: str, *, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.details = details or {}


class NotApplicable(Exception):
    """The check does not concern this decoder; the message says why. The report lists it as not verified."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What a check says about itself before it runs.

    A required check that errs or does not run makes the run incomplete; one that is inconclusive makes it inconclusive.
    """

    chapter: int
    property: str
    evidence: Evidence
    required: bool = True
    minimum_profile: Profile = "smoke"


def check(
    *,
    chapter: int,
    property: str,  # noqa: A002 (the word of the report)
    evidence: Evidence,
    required: bool = True,
    minimum_profile: Profile = "smoke",
) -> pytest.MarkDecorator:
    """Mark a test function as a check; it takes the fixture `judge` and calls `judge.conclude` once, at its end.

    Apply it as a plain decorator with literal arguments: the manifest of a full run is read from the source.
    """
    if minimum_profile not in PROFILES:
        raise ValueError(f"minimum_profile {minimum_profile!r} is not a profile; use one of {', '.join(PROFILES)}")
    spec = Check(
        chapter=chapter, property=property, evidence=evidence, required=required, minimum_profile=minimum_profile
    )
    mark: pytest.MarkDecorator = getattr(pytest.mark, MARKER)
    return mark.with_args(spec)


class Judge:
    """One check's view of the run.

    `alpha` is the false-alarm probability that this check may spend, 0 for checks that are not statistical. `seed` is
    derived from the run's seed and the check's id. `make_decoder` is the adapter under test. `shared` lives as long as
    the run: a place for models that are expensive to load.
    """

    __slots__ = ("_log", "_show", "alpha", "check", "finding", "id", "make_decoder", "options", "seed", "shared")

    def __init__(
        self,
        *,
        check: Check,
        id: str,  # noqa: A002 (the key of the report)
        alpha: float,
        seed: int,
        options: Options,
        make_decoder: "DecoderFactory",
        shared: dict[str, Any],
        log: Callable[..., None],
        show: Callable[[str], None],
    ) -> None:
        self.check = check
        self.id = id
        self.alpha = alpha
        self.seed = seed
        self.options = options
        self.make_decoder = make_decoder
        self.shared = shared
        self.finding: Finding | None = None
        self._log = log
        self._show = show

    @property
    def profile(self) -> Profile:
        """How much to run: smoke, default or exhaustive."""
        return self.options.profile

    def conclude(self, finding: Finding) -> None:
        """Give the check's one verdict.

        Raises RuntimeError (the check becomes an error) for a second verdict, a verdict that only the run may give, a
        pass without a single observation, and a false-alarm probability above `alpha`.
        """
        if self.finding is not None:
            raise RuntimeError(
                f"second verdict {finding.verdict}; a check concludes once; it said {self.finding.verdict}"
            )
        if finding.verdict is Verdict.WAIVED:
            raise RuntimeError("verdict waived; only --xfails waives; conclude with fail")
        if finding.verdict is Verdict.PASS and finding.observations <= 0:
            raise RuntimeError("pass on 0 observations is vacuous; state `observations`, or conclude inconclusive")
        if finding.false_alarm > self.alpha * (1 + 1e-9):
            raise RuntimeError(
                f"false alarm {finding.false_alarm:g} exceeds this check's share {self.alpha:g}; spend at most that"
            )
        self.finding = finding

    def log_generation(self, *, request: object, generation: object, models_name: str = "") -> None:
        """Append one request and its answer to the run's `generations.jsonl.gz`."""
        self._log(check=self.id, models=models_name, request=request, generation=generation)

    def progress(self, done: int, total: int, what: str) -> None:
        """Show how far a long check is; silent where the terminal is not one."""
        self._show(f"{what}: {done}/{total}")
