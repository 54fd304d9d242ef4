"""What a full run consists of, read from the suite's source so that no pytest hook elsewhere can shorten it unseen."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from verify.doors import Door, opens
from verify.options import OWN_SUITE, Profile, includes


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One check function of the suite; parametrised, it becomes several checks whose ids start with `id`."""

    id: str
    chapter: int
    property: str
    required: bool
    minimum_profile: Profile

    def covers(self, check_id: str) -> bool:
        """Whether `check_id` is this function or one of its parametrised cases."""
        return check_id == self.id or check_id.startswith(f"{self.id}[")


def read_manifest(suite: Path, *, profile: Profile, door: Door = "decoder") -> tuple[Entry, ...]:
    """The check functions below `suite` that a run at `profile` through `door` must execute."""
    entries = (entry for path in sorted(suite.rglob("test_*.py")) for entry in _entries(path, suite))
    return tuple(entry for entry in entries if includes(profile, entry.minimum_profile) and opens(door, entry.chapter))


def check_id(path: Path, names: str, *, suite: Path) -> str:
    """The id of a check: its file relative to the package that holds the suite, then `::` and its name.

    The same wherever pytest is started and however the suite is installed.
    """
    root = suite.parent.parent if suite == OWN_SUITE else suite.parent
    shown = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
    return f"{shown.as_posix()}::{names}"


def _entries(path: Path, suite: Path) -> Iterator[Entry]:
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    yield from _functions(tree, path, suite, prefix="")


def _functions(node: ast.Module | ast.ClassDef, path: Path, suite: Path, *, prefix: str) -> Iterator[Entry]:
    for child in node.body:
        if isinstance(child, ast.ClassDef):
            yield from _functions(child, path, suite, prefix=f"{prefix}{child.name}::")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            for decorator in child.decorator_list:
                if not (isinstance(decorator, ast.Call) and _name(decorator.func) == "check"):
                    continue
                said = {word.arg: word.value for word in decorator.keywords if word.arg}
                yield Entry(
                    id=check_id(path, f"{prefix}{child.name}", suite=suite),
                    chapter=_number(_literal(said.get("chapter"), 0)),
                    property=str(_literal(said.get("property"), child.name)),
                    required=bool(_literal(said.get("required"), True)),
                    minimum_profile=_profile(_literal(said.get("minimum_profile"), "smoke")),
                )


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _literal(node: ast.expr | None, default: object) -> object:
    return node.value if isinstance(node, ast.Constant) else default


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def _profile(value: object) -> Profile:
    return value if value in ("default", "exhaustive") else "smoke"
