"""`junit.xml` for CI systems."""

from xml.etree import ElementTree

from verify.report.schema import CheckResult, Results
from verify.report.verdict import conclude
from verify.report.words import chapter_title, printable
from verify.results import Verdict

ELEMENTS = {
    Verdict.FAIL: "failure",
    Verdict.ERROR: "error",
    Verdict.INCONCLUSIVE: "skipped",
    Verdict.NOT_APPLICABLE: "skipped",
    Verdict.WAIVED: "skipped",
}


def to_junit(results: Results) -> str:
    """One test case per check, and one more for the run's verdict.

    CI systems count a skipped test as good, so the last case fails unless the verdict is pass: an inconclusive or
    incomplete run is never green.
    """
    suite = ElementTree.Element("testsuite", name="verify", time=f"{results.duration_s:.3f}")
    if started := results.environment.get("started"):
        suite.set("timestamp", started.removesuffix("Z"))
    _properties(
        suite,
        {
            "verdict": results.verdict,
            "decoder": results.decoder.name,
            "device": results.device,
            "dtype": results.dtype,
            "profile": results.profile,
            "seed": str(results.seed),
            "false_alarm": repr(results.false_alarm),
            "commit": results.commit,
            "command": results.command,
        },
    )
    for result in results.checks:
        _case(suite, result)
    final = ElementTree.SubElement(suite, "testcase", classname="verify", name="verdict of the run", time="0")
    if results.verdict != "pass":
        reason = conclude(results.checks, results.not_verified).reason
        ElementTree.SubElement(
            final, "failure", message=printable(f"{results.verdict}: {reason}"), type=results.verdict
        )
    cases = suite.findall("testcase")
    counts = {
        "tests": len(cases),
        "failures": sum(case.find("failure") is not None for case in cases),
        "errors": sum(case.find("error") is not None for case in cases),
        "skipped": sum(case.find("skipped") is not None for case in cases),
    }
    root = ElementTree.Element("testsuites", name="verify", time=f"{results.duration_s:.3f}")
    for name, count in counts.items():
        suite.set(name, str(count))
        root.set(name, str(count))
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _case(suite: ElementTree.Element, result: CheckResult) -> None:
    details = result.details
    case = ElementTree.SubElement(
        suite,
        "testcase",
        classname=printable(f"verify.{result.chapter:02d} {chapter_title(result.chapter)}"),
        name=printable(result.id),
        time=f"{details.duration_s:.3f}",
    )
    _properties(
        case,
        {
            "property": result.property,
            "verdict": result.verdict,
            "evidence": result.evidence,
            "observations": f"{details.observations} {details.unit}",
            "false_alarm": repr(details.false_alarm),
            "smallest_visible": f"{details.smallest_visible} {details.smallest_visible_unit}".strip(),
        },
    )
    if element := ELEMENTS.get(result.verdict):
        found = ElementTree.SubElement(case, element, message=printable(f"{result.verdict}: {result.reason}"))
        if element != "skipped":
            found.set("type", result.evidence)
            rows = (result.property, result.reason, details.diagnosis, f"reproduce: {details.command}")
            found.text = printable("\n".join(row for row in (*rows, details.traceback) if row))


def _properties(parent: ElementTree.Element, values: dict[str, str]) -> None:
    properties = ElementTree.SubElement(parent, "properties")
    for name, value in values.items():
        ElementTree.SubElement(properties, "property", name=name, value=printable(str(value)))
