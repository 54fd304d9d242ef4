"""Finding what is under test: a decoder by entry point or `module:attribute`, a rejection step by the latter."""

import importlib
import sys
import traceback
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

import pytest

from verify.declared import CHECKOUT, known_decoders, known_engines, known_families
from verify.values import choose

if TYPE_CHECKING:
    from verify.protocol import Decoder, ModelPair

DecoderFactory: TypeAlias = "Callable[[ModelPair], Decoder]"


def find_decoder(name: str, *, working_dir: Path, checkout: Path = CHECKOUT) -> DecoderFactory:
    """Import the adapter factory `name`, or have the family before a colon make it.

    `working_dir` and `checkout` are made importable, as `python -m pytest` would. Raises `pytest.UsageError` that
    lists the valid names, or says where the import of the adapter failed.
    """
    said, importable = f"--decoder {name!r}", (working_dir, checkout)
    _refuse_file(said, name, working_dir=working_dir, usual="make_decoder")
    families = known_families(checkout=checkout)
    family, _, member = name.partition(":")
    if family in families:
        make = _find(
            said,
            families[family],
            rule="is declared wrongly; its entry point must be module:attribute",
            signature="factory_of(member: str) -> make_decoder",
            importable=importable,
        )
        try:
            return cast(DecoderFactory, make(member))
        except ValueError as error:  # there is no such member; the family knows which there are
            raise pytest.UsageError(f"{said}: {error}") from error
    value = name
    if ":" not in name:
        known = known_decoders(checkout=checkout) | known_engines(checkout=checkout)
        also = "".join(f", {each}:NAME" for each in sorted(families)) + ", or module:attribute"
        value = known[choose("--decoder", name, sorted(known), also=also)]
    found = _find(
        said,
        value,
        rule="must be a known name or module:attribute, such as my_adapter:make",
        signature="make_decoder(models) -> Decoder",
        importable=importable,
    )
    return cast(DecoderFactory, found)


def find_engine(name: str, *, working_dir: Path, checkout: Path = CHECKOUT) -> Callable[..., object]:
    """Import the engine factory of the entry point `name`; errors and paths as in `find_decoder`."""
    return _find(
        f"--decoder {name!r}",
        known_engines(checkout=checkout)[name],
        rule="is declared wrongly; its entry point must be module:attribute",
        signature="make_engine(settings) -> Engine",
        importable=(working_dir, checkout),
    )


def find_kernel(name: str, *, working_dir: Path, checkout: Path = CHECKOUT) -> Callable[..., object]:
    """Import the rejection step `name`, `module:function`; errors and paths as in `find_decoder`."""
    _refuse_file(f"--verifier {name!r}", name, working_dir=working_dir, usual="verify")
    return _find(
        f"--verifier {name!r}",
        name,
        rule="must be module:function, such as my_kernel:verify",
        signature="verify(draft_token_ids, draft_probs, target_probs, draft_lengths)",
        importable=(working_dir, checkout),
    )


def _find(said: str, value: str, *, rule: str, signature: str, importable: Sequence[Path]) -> Callable[..., object]:
    """Import `module:attribute`; `importable` are the working directory and the checkout."""
    for position, path in zip((0, len(sys.path) + 1), map(str, importable), strict=True):
        if path not in sys.path:
            sys.path.insert(position, path)
    module_name, _, attribute = value.partition(":")
    if not module_name or not attribute:
        raise pytest.UsageError(f"{said} {rule}")
    found: object = _import(said, module_name)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise pytest.UsageError(_no_attribute(said, found, module_name, part))
        found = getattr(found, part)
    if not callable(found):
        raise pytest.UsageError(f"{said} is {type(found).__name__}; it must be a function {signature}")
    return found


def _refuse_file(said: str, name: str, *, working_dir: Path, usual: str) -> None:
    """A file or its module alone is what one writes first; `usual` is what its function is usually called."""
    module, _, attribute = name.partition(":")
    if module.endswith(".py") or (not attribute and (working_dir / f"{name}.py").is_file()):
        dotted = module.removesuffix(".py").replace("/", ".")
        raise pytest.UsageError(f"{said} names a file; name the function in it: {dotted}:{attribute or usual}")


def _import(said: str, module_name: str) -> object:
    try:
        return importlib.import_module(module_name)
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name in (module_name, module_name.split(".")[0])
        if missing:
            hint = "it must be importable from the current directory or the environment"
        elif isinstance(error, SyntaxError):
            hint = f"in {error.filename}"
        else:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            hint = f"raised at {frame.filename}:{frame.lineno}"
        raise pytest.UsageError(
            f"{said}: cannot import {module_name!r}: {type(error).__name__}: {error}; {hint}"
        ) from error


def _no_attribute(said: str, found: object, module_name: str, part: str) -> str:
    local = [key for key, value in vars(found).items() if callable(value) and not key.startswith("_")]
    nearest = get_close_matches(part, local, n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return f"{said}: {module_name!r} has no attribute {part!r}{hint} Callables there: {', '.join(local)}"
