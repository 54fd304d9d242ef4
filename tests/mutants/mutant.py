"""What a planted bug is, and the decoder that carries it."""

import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from dspark.conformance import make_decoder

# Checks that many bugs are seen by; the others are named in full at the bug.
EXACT = "test_02_exact_law.py::test_rounds[close]"
BATCH = "test_02_exact_law.py::test_batches[two prompts]"
GREEDY = "test_01_greedy.py::test_identity_by_draft_length[3]"
ROLLBACK = "test_06_state.py::test_rollback[4]"
HISTORY = "test_04_processors.py::test_history_inside_a_block[{}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One planted bug.

    `id` is a row of the catalog of real bugs, `source` its public thread or commit; a letter behind the id tells bugs of one row
    apart. `make` builds the correct decoder and `patches` maps a dotted name to its wrong replacement while that runs.

    `check` is the cheapest check of the suite that must fail, and `properties` are those whose checks may name the bug. Bugs of
    the law have `diagnosis`: the hypotheses of the suite's library that name them. An `equivalent` bug leaves the law alone: no
    check may fail, and `check` is one that proves it.
    """

    id: str
    family: str
    source: str
    mechanism: str
    check: str
    properties: tuple[str, ...]
    patches: Mapping[str, Any] = field(default_factory=dict)
    make: Callable[[Any], Any] = make_decoder
    diagnosis: tuple[str, ...] = ()
    equivalent: bool = False


def require_names(patches: Mapping[str, Any]) -> None:
    """Raise ValueError for a dotted name that does not exist (any more): a decoder that cannot be built is no planted bug."""
    for name in patches:
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError) as error:
            raise ValueError(
                f"{name!r} is to be replaced and does not exist ({error}). Bring the patch up to date."
            ) from None


class PatchedDecoder:
    """A decoder with some names replaced while it runs."""

    def __init__(self, make: Callable[[Any], Any], patches: Mapping[str, Any], models: Any) -> None:
        self.patches = patches
        with self._planted():
            self.inner = make(models)
        self.capabilities = self.inner.capabilities

    def generate(self, requests: Sequence[Any]) -> Any:
        """Answer with the replacements in place."""
        with self._planted():
            return self.inner.generate(requests)

    def stream(self, request: Any) -> Iterator[Any]:
        """Stream with the replacements in place."""
        with self._planted():
            yield from self.inner.stream(request)

    def _planted(self) -> ExitStack:
        stack = ExitStack()
        for name, replacement in self.patches.items():
            stack.enter_context(mock.patch(name, replacement))
        return stack
