"""HTML for people, Markdown for pull requests, JUnit for CI: the same facts in each."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from verify.report import pictures, words
from verify.report.__main__ import main
from verify.report.files import write_pictures
from verify.report.html import to_html
from verify.report.junit import to_junit
from verify.report.markdown import to_markdown
from verify.report.schema import PICTURE, Results
from verify.report.writer import write_reports
from verify.results import Verdict

VOID = {"meta", "br"}


class Page(HTMLParser):
    """Collects text and attributes, and checks that tags nest."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.words: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.tags: list[str] = []
        self.feed(source)
        self.close()
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)


def test_the_page_loads_nothing_and_is_well_formed(everything: Results) -> None:
    source = to_html(everything)
    page = Page(source)
    assert page.open == []
    assert "http" not in source
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    loading = [value for name, value in page.attributes if name in ("src", "href", "xlink:href", "data", "action")]
    assert all(value and value.startswith("#") for value in loading)
    assert "url(" not in source.replace("url(#", "")
    assert "@import" not in source
    assert "\x1b" not in source
    assert "\x00" not in source


def test_ids_are_unique_and_links_arrive(everything: Results) -> None:
    page = Page(to_html(everything))
    ids = [value for name, value in page.attributes if name == "id" and value is not None]
    referred = {value[1:] for name, value in page.attributes if name == "href" and value and value.startswith("#")}
    assert len(set(ids)) == len(ids)
    assert referred <= set(ids)


def test_the_page_says_everything(everything: Results) -> None:
    text = Page(to_html(everything)).text
    for result in everything.checks:
        assert words.printable(result.property) in text
    for expected in (
        "FAIL",
        "with probability at most 1e-06",
        "2 checks failed",
        "residual not subtracted, 10^9.1 to 1 against draft leak 0.1",
        "prompt: [0, 1] position: 3",
        "--decoder d --seed 1 --allow-partial",
        "0.0213 total variation",
        "not claimed by the decoder",
        "no streaming",
        "runs at --profile exhaustive",
        "known, issue 12",
        "one token too many",
        "exit code 11",
        "greedy logprobs=raw",
        "Never reached: stop inside a block.",
        "Total variation 0.15 over 3 outcomes",
        'a<script>alert("x")</script>|b\\x1b[31m & \\x00',
        "commit abc",
    ):
        assert expected in text
    # Failures come before the table of all checks.
    assert text.index("expected total variation at most") < text.index("All checks")


def test_pictures_of_passing_checks_are_folded_away(make_check: Any, make_results: Any, everything: Results) -> None:
    shown = everything.checks[0].details.pictures
    check = make_check(details={"pictures": [each.model_dump() for each in shown]})
    source = to_html(make_results(check))
    assert source.count("<svg") == len(shown)
    assert source.index('<details class="pictures">') < source.index("<svg")
    assert "Failures" not in source


@pytest.mark.parametrize("verdict", ["pass", "fail", "inconclusive", "incomplete"])
def test_the_headline_states_the_false_alarm_probability(make_results: Any, make_check: Any, verdict: str) -> None:
    results = make_results(make_check(), verdict=verdict, false_alarm=3e-5)
    assert "probability at most 3e-05" in words.headline(results)
    assert words.headline(results) in Page(to_html(results)).text


def test_a_pass_with_waivers_does_not_say_that_nothing_was_found(make_results: Any, make_check: Any) -> None:
    waived = [{"id": "a", "pattern": "a", "reason": "r", "failure": "f"}]
    results = make_results(make_check(), make_check(Verdict.WAIVED, name="a"), waived=waived)
    assert words.headline(results).startswith("Apart from 1 waived failure, no check found")


def test_every_picture_is_drawn_in_the_ink_of_the_page(everything: Results) -> None:
    for picture in everything.checks[0].details.pictures:
        svg = pictures.to_svg(picture, name="a")
        assert "currentColor" in svg
        assert "ffffff" not in svg
        assert "xmlns" not in svg
        assert svg == pictures.to_svg(picture, name="a")
        ElementTree.fromstring(svg)


@pytest.mark.parametrize(
    "picture",
    [
        {"kind": "coverage", "title": "t", "counts": {}},
        {"kind": "divergences", "title": "t", "positions": [], "gaps": [], "floor": 0.0},
        {"kind": "divergences", "title": "t", "positions": [1], "gaps": [0.0], "floor": 0.0},
        {"kind": "wealth", "title": "t", "tokens": [], "log10_wealth": {"a": []}, "threshold": 6.0},
        {
            "kind": "law",
            "title": "t",
            "labels": [str(number) for number in range(100)],
            "expected": [0.01] * 100,
            "observed": [0.02] + [0.98 / 99] * 99,
        },
    ],
)
def test_bare_and_crowded_pictures_are_drawn_too(picture: dict[str, Any]) -> None:
    validated = PICTURE.validate_python(picture)
    assert pictures.to_svg(validated, name="a").startswith("<svg")
    assert pictures.caption(validated)


def test_a_picture_that_cannot_be_drawn_says_so(make_check: Any, make_results: Any) -> None:
    uneven = {"kind": "law", "title": "t", "labels": ["a"], "expected": [0.5, 0.5], "observed": [1.0]}
    text = Page(to_html(make_results(make_check(Verdict.FAIL, details={"pictures": [uneven]})))).text
    assert "This law picture could not be drawn: ValueError" in text


def test_junit_counts_what_ci_should_see(everything: Results) -> None:
    root = ElementTree.fromstring(to_junit(everything))
    (suite,) = root
    cases = suite.findall("testcase")
    assert len(cases) == int(suite.attrib["tests"]) == int(root.attrib["tests"]) == len(everything.checks) + 1
    for element, attribute, number in (("failure", "failures", 3), ("error", "errors", 1), ("skipped", "skipped", 3)):
        assert len(suite.findall(f"testcase/{element}")) == int(suite.attrib[attribute]) == number
    named = {case.attrib["name"]: case for case in cases}
    failure = named["verify/suite/test_02.py::test_law[chain-3]"].find("failure")
    assert failure is not None
    assert failure.text is not None
    assert "residual not subtracted" in failure.text
    assert "reproduce: pytest" in failure.text
    assert "\\x1b[31m" in ElementTree.tostring(named["verify/suite/test_13.py::test_hostile"], encoding="unicode")
    properties = {each.attrib["name"]: each.attrib["value"] for each in suite.findall("properties/property")}
    assert properties["verdict"] == "fail"
    assert properties["false_alarm"] == "1e-06"


@pytest.mark.parametrize(("verdict", "green"), [(Verdict.PASS, True), (Verdict.INCONCLUSIVE, False)])
def test_junit_is_green_only_for_a_pass(make_check: Any, make_results: Any, verdict: Verdict, green: bool) -> None:
    suite = ElementTree.fromstring(to_junit(make_results(make_check(verdict))))[0]
    assert (suite.attrib["failures"] == suite.attrib["errors"] == "0") is green


def test_markdown_tables_stay_tables(everything: Results) -> None:
    text = to_markdown(everything)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == len(everything.checks) + 2
    assert {row.replace("\\|", "").count("|") for row in rows} == {7}
    for expected in (
        "# FAIL: my:make",
        "residual not subtracted, 10^9.1",
        "not claimed by the decoder",
        "known, issue 12",
    ):
        assert expected in text
    assert "<script>" not in text
    assert "\x1b" not in text
    assert f"`{everything.command}`" in text


def test_reports_do_not_stop_each_other(everything: Results, tmp_path: Any) -> None:
    assert write_reports(everything, tmp_path) == []
    (problem, *others) = write_reports(everything, tmp_path / "missing")
    assert "could not be written" in problem
    assert len(others) == 2


def test_pictures_of_what_failed_become_files_that_stand_alone(everything: Results, tmp_path: Path) -> None:
    source = tmp_path / "results.json"
    source.write_text(everything.model_dump_json())
    assert main([str(source), "--pictures", str(tmp_path / "pictures")]) == 0
    failed = [each for each in everything.checks if each.verdict is Verdict.FAIL]
    files = sorted((tmp_path / "pictures").iterdir())
    assert len(files) == sum(len(each.details.pictures) for each in failed) > 0
    for file in files:
        assert ElementTree.parse(file).getroot().tag == "{http://www.w3.org/2000/svg}svg"
        assert "color=" in file.read_text()


def test_pictures_of_all_checks_where_none_failed(everything: Results, tmp_path: Path) -> None:
    passed = [each.model_copy(update={"verdict": Verdict.PASS}) for each in everything.checks]
    files = write_pictures(everything.model_copy(update={"checks": passed}), tmp_path)
    assert len(set(files)) == sum(len(each.details.pictures) for each in passed) > 0
