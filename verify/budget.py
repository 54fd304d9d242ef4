"""One false-alarm budget and one seed for a run, split over its checks."""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass

from verify.results import Evidence

STATISTICAL = frozenset({Evidence.BETTING, Evidence.TWO_SAMPLE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The run's false-alarm probability, split evenly over its statistical checks (union bound).

    The others cannot raise a false alarm.
    `share` is one statistical check's part; `share * num_statistical <= total`.
    """

    total: float
    num_statistical: int

    @classmethod
    def over(cls, evidences: Iterable[Evidence], *, total: float) -> "Budget":
        """Split `total` over those of `evidences` that are statistical."""
        return cls(total=total, num_statistical=sum(evidence in STATISTICAL for evidence in evidences))

    @property
    def share(self) -> float:
        """One statistical check's part, rounded down."""
        if self.num_statistical == 0:
            return 0.0
        share = self.total / self.num_statistical
        while share * self.num_statistical > self.total:
            share = math.nextafter(share, 0)
        return share

    def alpha(self, evidence: Evidence) -> float:
        """The false-alarm probability that a check with this evidence may spend."""
        return self.share if evidence in STATISTICAL else 0.0


def derive_seed(seed: int, check_id: str) -> int:
    """A seed in [0, 2**63) for one check; it depends on nothing but the run's seed and the check's id."""
    digest = hashlib.sha256(f"{seed}:{check_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
