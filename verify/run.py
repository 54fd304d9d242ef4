"""One run: what it was asked, what it selected, what it has learnt so far."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import pytest

from verify.budget import Budget, derive_seed
from verify.doors import left_out as chapters_left_out
from verify.doors import opens
from verify.entrance import enter
from verify.judge import Check, ContractViolation, Judge
from verify.manifest import read_manifest
from verify.options import OWN_SUITE, Options, includes, read_options
from verify.parallel import describe_workers, refuse_unsupported
from verify.report.environment import describe_commit, describe_environment
from verify.report.judged import Judged, Learnt, generation_line
from verify.report.progress import Progress
from verify.report.recorder import Recorder, make_run_dir, worse
from verify.report.schema import CheckResult, DecoderInfo, ModelInfo, NotVerified, Results, Waived, jsonable
from verify.report.verdict import Conclusion, conclude
from verify.report.words import chapter_title
from verify.report.writer import write_reports
from verify.results import Verdict
from verify.waivers import read_waivers

if TYPE_CHECKING:
    from verify.protocol import Decoder, ModelPair

NOT_CLAIMS = ("arithmetic", "seeded_at_start")  # one has every decoder; the other is better left unclaimed


class Run:
    """The state of one run. Raises `pytest.UsageError` when the command line asks for what is not there.

    A process judges, or records, or does both. With pytest-xdist the workers judge and their controller records.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.options: Options = read_options(config)
        refuse_unsupported(config, self.options)
        self.shared: dict[str, Any] = {}
        self.factory, self.name, self.adapter = enter(self.options, config.invocation_params.dir, shared=self.shared)
        self.waivers = read_waivers(self.options.xfails) if self.options.xfails else ()
        self.budget = Budget(total=self.options.false_alarm, num_statistical=0)
        self.environment = describe_environment(device=self.options.device) | describe_workers(config)
        self.progress = Progress(config)
        self.recorder: Recorder | None = None
        self.selected: dict[str, Check] = {}
        self.other_failures = 0
        self.report_problems: list[str] = []
        self.results: Results | None = None
        self.conclusion: Conclusion | None = None
        self.exit_code = 0
        self._config = config
        self._claims: dict[str, Any] = {}
        self._models: dict[str, ModelInfo] = {}
        self._generations: list[str] = []
        self._judged: dict[str, CheckResult] = {}
        self._not_selected: list[NotVerified] = []

    @property
    def early_claims(self) -> str:
        """The claims as known before a model is there: an adapter may carry `capabilities` on its function."""
        claims = getattr(self.factory, "capabilities", None)
        return "read when the decoder is built; see the summary" if claims is None else str(claims)

    @property
    def command(self) -> str:
        """The command that repeats this run: as it was given, with what it took from elsewhere or drew at random."""
        given = [str(arg) for arg in self._config.invocation_params.args]
        for name, value in ((self.options.option, self.options.decoder), ("--seed", str(self.options.seed))):
            if not any(arg == name or arg.startswith(f"{name}=") for arg in given):
                given += [name, value]
        return shlex.join(["pytest", *given])

    def executes(self, check: Check) -> bool:
        """Whether this run's profile and door include a check."""
        return includes(self.options.profile, check.minimum_profile) and opens(self.options.door, check.chapter)

    def select(self, collected: dict[str, Check], kept: Sequence[str]) -> None:
        """Learn which checks run; the budget is split over all that were collected, so that -k changes no share."""
        profile = self.options.profile
        door = self.options.door
        possible = {name: check for name, check in collected.items() if self.executes(check)}
        self.budget = Budget.over((check.evidence for check in possible.values()), total=self.options.false_alarm)
        self.selected = {name: possible[name] for name in kept if name in possible}
        left_out = self._not_selected
        if self.options.suite == OWN_SUITE:
            for chapter, reason in chapters_left_out(door).items():
                what = f"chapter {chapter}: {chapter_title(chapter)}"
                left_out.append(NotVerified(kind="not_applicable", what=what, reason=reason))
        for entry in read_manifest(self.options.suite, profile="exhaustive", door=door):
            if not includes(profile, entry.minimum_profile):
                reason = f"runs at --profile {entry.minimum_profile}"
                left_out.append(NotVerified(kind="profile", what=entry.id, reason=reason))
            elif not any(entry.covers(name) for name in collected):
                reason = "not among the selected checks"
                left_out.append(NotVerified(kind="not_selected", what=entry.id, reason=reason, required=entry.required))
        for name, check in possible.items():
            if name not in self.selected:
                reason = "deselected"
                left_out.append(NotVerified(kind="not_selected", what=name, reason=reason, required=check.required))
        for arg in self._config.args:
            if "[" in arg:  # pytest does not even collect the other cases of that function
                reason = "only the named case was selected"
                left_out.append(NotVerified(kind="not_selected", what=arg.split("[")[0], reason=reason, required=True))
        if (
            self._config.getoption("lf", False)
            and self._config.cache
            and self._config.cache.get("cache/lastfailed", {})
        ):
            reason = "only what failed before was selected"  # nor are the other cases collected here
            left_out.append(NotVerified(kind="not_selected", what="--last-failed", reason=reason, required=True))
        partial = any(entry.kind == "not_selected" for entry in left_out)
        self.environment["selection"] = f"partial: {len(self.selected)} checks" if partial else "whole suite"
        self.environment["suite"] = "verify" if self.options.suite == OWN_SUITE else str(self.options.suite)
        if not partial:
            self._refuse_idle_waivers(list(collected))

    def start(self, problems: list[NotVerified]) -> None:
        """Open the record of the run."""
        base = self._config.invocation_params.dir
        options = self.options
        self.recorder = Recorder(
            make_run_dir(options.report_dir, self.name),
            frame={
                "device": options.device,
                "dtype": options.dtype,
                "seed": options.seed,
                "profile": options.profile,
                "false_alarm": options.false_alarm,
                "commit": describe_commit(base),
                "command": self.command,
            },
            decoder=DecoderInfo(name=self.name, adapter=self.adapter, capabilities={}),
            order=list(self.selected),
            missing=self.not_verified,
        )
        self.recorder.environment = self.environment
        self.recorder.problems = problems
        self.recorder.write()

    def finish(self) -> int:
        """Write everything; return the exit code."""
        assert self.recorder is not None, "start() comes before finish()"
        self.recorder.learn(self._learnt())
        self.results = self.recorder.write()
        self.recorder.close()
        self.report_problems = write_reports(self.results, self.recorder.folder)
        self.conclusion = conclude(
            self.results.checks, self.results.not_verified, allow_partial=self.options.allow_partial
        )
        self.exit_code = self.conclusion.exit_code or int(self.other_failures > 0)
        return self.exit_code

    def judge(self, check_id: str, check: Check) -> Judge:
        """The judge of one check."""
        return Judge(
            check=check,
            id=check_id,
            alpha=self.budget.alpha(check.evidence),
            seed=derive_seed(self.options.seed, check_id),
            options=self.options,
            make_decoder=self.make_decoder,
            shared=self.shared,
            log=self._log_generation,
            show=self.progress.show,
        )

    def hand_in(self, result: CheckResult, waived: Waived | None) -> str:
        """A verdict and what was learnt with it, as text for `record`; the worse verdict where the check has two."""
        kept = self._judged[result.id] = worse(self._judged.get(result.id, result), result)
        return Judged(result=kept, waived=waived if kept is result else None, learnt=self._learnt()).model_dump_json()

    def record(self, handed_in: str) -> None:
        """Write down what a check handed in, in this process or in a worker."""
        assert self.recorder is not None, "start() comes before the first report"
        judged = Judged.model_validate_json(handed_in)
        self.recorder.learn(judged.learnt)
        self.recorder.add(judged.result, judged.waived)

    def make_decoder(self, models: "ModelPair") -> "Decoder":
        """Build the decoder under test and note what it claims; raises `ContractViolation` for claims that are none."""
        from verify.protocol import Capabilities  # here: it imports torch, which usage errors need not wait for

        decoder = self.factory(models)
        try:
            claims = asdict(Capabilities.of(decoder.capabilities))
        except (AttributeError, TypeError, ValueError) as error:
            raise ContractViolation(
                f"make_decoder returned {type(decoder).__name__}, whose `capabilities` are invalid: {error}"
            ) from error
        for name, claim in claims.items():
            self._claims[name] = self._claims.get(name) or claim  # claimed with any pair is claimed
        self._models[models.name] = ModelInfo(
            name=models.name, vocab_size=models.vocab_size, device=str(models.device), dtype=str(models.dtype)
        )
        return decoder

    def not_verified(self, recorder: Recorder) -> list[NotVerified]:
        """What the run says nothing about if it ends now."""
        found = list(self._not_selected)
        for name, check in self.selected.items():
            result = recorder.checks.get(name)
            if result is None:
                reason = "the run ended before it"
                found.append(NotVerified(kind="not_run", what=name, reason=reason, required=check.required))
            elif result.verdict is Verdict.NOT_APPLICABLE:
                found.append(NotVerified(kind="not_applicable", what=name, reason=result.reason))
        claims = recorder.decoder.capabilities
        unclaimed = [name for name, claim in claims.items() if not claim and name not in NOT_CLAIMS]
        found += [NotVerified(kind="capability", what=name, reason="not claimed by the decoder") for name in unclaimed]
        return found

    def _log_generation(self, *, check: str, models: str, request: object, generation: object) -> None:
        self._generations.append(generation_line(check=check, models=models, request=request, generation=generation))

    def _learnt(self) -> Learnt:
        """What is new since the last time."""
        learnt = Learnt(
            claims=jsonable(self._claims), models=list(self._models.values()), generations=self._generations
        )
        self._generations = []
        return learnt

    def _refuse_idle_waivers(self, ids: list[str]) -> None:
        for waiver in self.waivers:
            if not any(waiver.matches(each) for each in ids):
                nearest = get_close_matches(waiver.id, ids, n=1, cutoff=0.3)
                hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
                raise pytest.UsageError(
                    f"--xfails: {waiver.id!r} matches no check of this run; remove or correct it{hint}"
                )
