"""The report of a run over planted bugs and controls: results.json, README.md and index.html."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tests.mutants.outcome import Outcome

TEMPLATES = Path(__file__).parent / "templates"


def write_report(outcomes: Sequence[Outcome], folder: Path) -> str:
    """Write the three files; returns the totals in one line."""
    folder.mkdir(parents=True, exist_ok=True)
    sums = totals(outcomes)
    entries = [asdict(each) | {"diagnosis_right": each.diagnosis_right} for each in outcomes]
    text = json.dumps({"totals": sums, "outcomes": entries}, indent=1)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")
    engine = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        autoescape=lambda name: bool(name) and ".html" in str(name),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    engine.filters["cell"] = lambda text: str(text).replace("|", "\\|").replace("\n", " ")
    for name in ("README.md", "index.html"):
        page = engine.get_template(f"{name}.j2").render(totals=sums, groups=_grouped(outcomes), sentence=sentence(sums))
        (folder / name).write_text(page, encoding="utf-8")
    return sentence(sums)


def totals(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The numbers of the report; `seconds_median` is of the checks that caught a mutant."""
    mutants = [each for each in outcomes if each.kind == "mutant"]
    equivalent = [each for each in outcomes if each.kind == "equivalent"]
    controls = [each for each in outcomes if each.kind == "control"]
    caught = [each for each in mutants if each.right]
    diagnosed = [each for each in caught if each.diagnosis_right is not None]
    return {
        "mutants": len(mutants),
        "families": len({each.family for each in mutants}),
        "caught": len(caught),
        "caught_by_own_check": sum(each.stage == "own check" for each in caught),
        "property_named": sum(each.named for each in caught),
        "missed": [each.id for each in mutants if not each.right],
        "equivalent": len(equivalent),
        "equivalent_passed": sum(each.right for each in equivalent),
        "controls": len(controls),
        "controls_accused": [each.id for each in controls if each.accused_by],
        "controls_passed": sum(each.right for each in controls),
        "with_hypothesis": len(diagnosed),
        "diagnosed_first": sum(bool(each.diagnosis_right) for each in diagnosed),
        "misdiagnosed": [each.id for each in diagnosed if not each.diagnosis_right],
        "seconds_median": median(each.seconds for each in caught) if caught else None,
    }


def sentence(sums: dict[str, Any]) -> str:
    """The totals in words."""
    parts = [f"{sums['caught']} of {sums['mutants']} planted bugs of {sums['families']} families caught"]
    if sums["equivalent"]:
        parts.append(f"{sums['equivalent_passed']} of {sums['equivalent']} that leave the law alone passed")
    if sums["controls"]:
        parts.append(f"{sums['controls_passed']} of {sums['controls']} controls passed")
        parts.append(f"{len(sums['controls_accused'])} accused")
    if sums["with_hypothesis"]:
        parts.append(f"bug named first in {sums['diagnosed_first']} of {sums['with_hypothesis']} with a hypothesis")
    if sums["seconds_median"] is not None:
        parts.append(f"median {sums['seconds_median']:.1f} s in the check that caught")
    return "; ".join(parts)


def _grouped(outcomes: Sequence[Outcome]) -> list[tuple[str, list[Outcome]]]:
    """What went wrong first, then mutants by family, then controls."""
    wrong = [each for each in outcomes if not each.right]
    groups: dict[str, list[Outcome]] = {"Wrongly judged": wrong} if wrong else {}
    for each in outcomes:
        title = {"mutant": each.family, "equivalent": "Bugs that leave the law alone", "control": "Controls"}[each.kind]
        groups.setdefault(title, []).append(each)
    return list(groups.items())
