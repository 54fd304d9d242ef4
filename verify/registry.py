"""Finding the decoder under test: entry points by name, or `module:attribute`."""

import importlib
import sys
import tomllib
import traceback
from collections.abc import Callable
from difflib import get_close_matches
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

import pytest

from verify.options import choose

if TYPE_CHECKING:
    from verify.protocol import Decoder, ModelPair

DecoderFactory: TypeAlias = "Callable[[ModelPair], Decoder]"
GROUP = "verify.decoders"
CHECKOUT = Path(__file__).parent.parent


def known_decoders(*, checkout: Path = CHECKOUT) -> dict[str, str]:
    """Names and their `module:attribute`: installed entry points, and those of `checkout` when it is not installed."""
    known: dict[str, str] = {}
    project = checkout / "pyproject.toml"
    if project.is_file():
        table = tomllib.loads(project.read_text(encoding="utf-8"))
        known.update(table.get("project", {}).get("entry-points", {}).get(GROUP, {}))
    known.update({entry.name: entry.value for entry in entry_points(group=GROUP)})
    return known


def find_decoder(name: str, *, working_dir: Path, checkout: Path = CHECKOUT) -> DecoderFactory:
    """Import the adapter factory `name`.

    `working_dir` and `checkout` are made importable, as `python -m pytest` would. Raises `pytest.UsageError` that
    lists the valid names, or says where the import of the adapter failed.
    """
    for position, path in ((0, str(working_dir)), (len(sys.path) + 1, str(checkout))):
        if path not in sys.path:
            sys.path.insert(position, path)
    value = name
    if ":" not in name:
        known = known_decoders(checkout=checkout)
        value = known[choose("--decoder", name, sorted(known), also=", or module:attribute")]
    module_name, _, attribute = value.partition(":")
    if not module_name or not attribute:
        raise pytest.UsageError(f"--decoder {name!r} must be a known name or module:attribute, such as my_adapter:make")
    found: object = _import(name, module_name)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise pytest.UsageError(_no_attribute(name, found, module_name, part))
        found = getattr(found, part)
    if not callable(found):
        raise pytest.UsageError(
            f"--decoder {name!r} is {type(found).__name__}; it must be a function make_decoder(models) -> Decoder"
        )
    return cast(DecoderFactory, found)


def _import(name: str, module_name: str) -> object:
    try:
        return importlib.import_module(module_name)
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name in (module_name, module_name.split(".")[0])
        if missing:
            hint = "it must be importable from the current directory or the environment"
        else:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            hint = f"raised at {frame.filename}:{frame.lineno}"
        raise pytest.UsageError(
            f"--decoder {name!r}: cannot import {module_name!r}: {type(error).__name__}: {error}; {hint}"
        ) from error


def _no_attribute(name: str, found: object, module_name: str, part: str) -> str:
    local = [key for key, value in vars(found).items() if callable(value) and not key.startswith("_")]
    nearest = get_close_matches(part, local, n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return f"--decoder {name!r}: {module_name!r} has no attribute {part!r}{hint} Callables there: {', '.join(local)}"
