"""`python -m verify.report RESULTS.json`: make the reports again from stored results."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from verify.report.files import write_pictures
from verify.report.overview import insert, property_table
from verify.report.schema import SCHEMA_FILE, SCHEMA_VERSION, Results, schema_text
from verify.report.verdict import USAGE_ERROR
from verify.report.writer import WRITERS, write_reports


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the reports beside the results; return 0, or 4 when the file is not such results, 1 when a report broke."""
    parser = argparse.ArgumentParser(prog="python -m verify.report", description=__doc__)
    parser.add_argument("results", type=Path, nargs="?", help="a results.json")
    parser.add_argument("--out", type=Path, help="folder of the reports (default: that of the results)")
    parser.add_argument("--write-schema", action="store_true", help="write the JSON Schema of results.json instead")
    parser.add_argument("--insert-table", type=Path, metavar="FILE.md", help="put the table of properties into FILE.md")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="write the pictures of what failed as SVG files")
    said = parser.parse_args(arguments)
    if said.write_schema:
        SCHEMA_FILE.write_text(schema_text(), encoding="utf-8")
        return 0
    if said.results is None:
        parser.error("name a results.json, or use --write-schema")
    try:
        results = Results.model_validate_json(said.results.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        print(f"{said.results} is not a results.json of schema {SCHEMA_VERSION}: {error}", file=sys.stderr)
        return USAGE_ERROR
    if said.insert_table is not None:
        text = said.insert_table.read_text(encoding="utf-8")
        said.insert_table.write_text(insert(text, property_table(results)), encoding="utf-8")
        return 0
    if said.pictures is not None:
        files = write_pictures(results, said.pictures)
        print("\n".join(map(str, files)) or f"{said.results} holds no picture")
        return 0
    folder = said.out or said.results.parent
    folder.mkdir(parents=True, exist_ok=True)
    problems = write_reports(results, folder)
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{results.verdict}: {', '.join(str(folder / name) for name in WRITERS)}")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
