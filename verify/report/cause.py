"""What many failing checks have in common: the mistake that their diagnoses name, and where to begin reading."""

import re
from collections import Counter
from dataclasses import dataclass

from verify.report.schema import CheckResult, Results
from verify.results import Evidence, Verdict

NAME = re.compile(r"(?:^|else: )(\w+) \(")  # how a diagnosis begins that names a mistake


@dataclass(frozen=True, slots=True)
class Cause:
    """The mistake named most often by the strongest evidence, by how many of the failing checks, and by which one first."""

    name: str
    num_naming: int
    num_failed: int
    first: CheckResult

    def __str__(self) -> str:
        return (
            f"{self.name}, named by {self.num_naming} of {self.num_failed} failing checks; begin with {self.first.id}"
        )


def probable_cause(results: Results) -> Cause | None:
    """None where fewer than two checks fail, or none names a mistake."""
    failed = [each for each in results.checks if each.verdict is Verdict.FAIL]
    named = [(each, found[1]) for each in failed if (found := NAME.search(each.details.diagnosis))]
    if len(failed) < 2 or not named:
        return None
    strength = list(Evidence)
    strongest = min((each.evidence for each, _ in named), key=strength.index)
    among = [(each, name) for each, name in named if each.evidence is strongest]
    name = Counter(name for _, name in among).most_common(1)[0][0]
    first = next(each for each, said in among if said == name)
    return Cause(name, sum(said == name for _, said in named), len(failed), first)
