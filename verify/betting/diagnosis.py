"""From wealth to a name: which mistake explains the tokens best, and by what odds."""

from dataclasses import dataclass

import numpy as np

from verify.betting.account import ROLES, Account
from verify.betting.hypotheses import Hypothesis
from verify.betting.learners import LearnedHypothesis
from verify.betting.wealth import Wealth


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """The hypothesis with the largest posterior; means something only after a rejection.

    `odds` are against the runner-up, by posterior (inf where nothing else is left). `ranking` holds (name, posterior)
    of the leading hypotheses. `alike` names other mistakes with the very same law, which tokens without offsets tell
    apart only by how often they act. `roles` maps each role to the log wealth that the winner gained at it, where roles
    are known.
    """

    name: str
    family: str
    explanation: str
    odds: float
    ranking: tuple[tuple[str, float], ...]
    roles: dict[str, float]
    alike: tuple[str, ...] = ()

    def __str__(self) -> str:
        if len(self.ranking) < 2:
            return f"{self.name}: {self.explanation}"
        odds = f"{self.odds:.1f}" if self.odds < 1e3 else f"{self.odds:.0e}"
        return f"{self.name} (odds {odds} against {self.ranking[1][0]}): {self.explanation}"


def diagnose(wealth: Wealth, *, informed: bool | None = None, num_ranked: int = 5) -> Diagnosis:
    """Name the mistake that explains the tokens best.

    `informed` reads the account that knows the offsets in the round, which tells bonus bugs from draft bugs; by default
    where every token came with its offset. As an explanation it serves any decoder, as a test only the standard rule.
    """
    if wealth.support_violation is not None:
        violation = wealth.support_violation
        return Diagnosis(
            name="support_violation",
            family="SUPPORT",
            explanation=f"Token {violation.token_id} was emitted at index {violation.index} with target probability 0; "
            "look at top-k, top-p, masks, comparisons with `<=`, and the order of processors: a temperature after top-p or min-p "
            "keeps other tokens than one before, and an engine that does so by design is to be asked for the documented order.",
            odds=float("inf"),
            ranking=(("support_violation", 1.0),),
            roles={},
        )
    if informed is None:
        informed = wealth.informed.num_tokens == wealth.blind.num_tokens
    account = wealth.informed if informed else wealth.blind
    posterior = account.posterior  # [B]
    shares: dict[str, float] = {}
    for bettor, mass in zip(account.bettors, posterior, strict=True):
        shares[bettor.name] = shares.get(bettor.name, 0.0) + float(mass)
    ranking = sorted(shares.items(), key=lambda item: -item[1])
    name, best = ranking[0]
    runner_up = ranking[1][1] if len(ranking) > 1 else 0.0
    known: list[Hypothesis | LearnedHypothesis] = [*wealth.hypotheses, *wealth.learned]
    hypothesis = next(each for each in known if each.name == name)
    return Diagnosis(
        name=name,
        family=hypothesis.family,
        explanation=hypothesis.explanation,
        odds=best / runner_up if runner_up > 0 else float("inf"),
        ranking=tuple(ranking[:num_ranked]),
        roles=_gains_by_role(account, name),
        alike=() if informed else _alike(wealth, name),
    )


def _alike(wealth: Wealth, name: str) -> tuple[str, ...]:
    laws = {each.formula for each in wealth.hypotheses if each.name == name}
    return tuple(each.name for each in wealth.hypotheses if each.formula in laws and each.name != name)


def _gains_by_role(account: Account, name: str) -> dict[str, float]:
    named = np.array([bettor.name == name for bettor in account.bettors])
    winner = int(np.argmax(np.where(named, account.posterior, -1.0)))
    gains = account.log_wealth_by_role[:, winner]  # [R]
    return {role: float(gain) for role, gain in zip(ROLES, gains, strict=True) if gain != 0}
