"""What a planted bug is, and the decoder that carries it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest import mock

from dspark.conformance import make_decoder


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One planted bug.

    `patches` maps a dotted name in `dspark` to its wrong replacement. `check` is one check of the suite that
    must fail, and `property` the property that it names.
    """

    id: str
    family: str
    source: str
    mechanism: str
    patches: Mapping[str, Any]
    check: str
    property: str


class MutantDecoder:
    """The reference decoder with one piece replaced while it runs."""

    def __init__(self, mutant: Mutant, inner: Any) -> None:
        self.mutant = mutant
        self.inner = inner
        self.capabilities = inner.capabilities

    def generate(self, requests: Sequence[Any]) -> Any:
        """Answer with the bug switched on."""
        with self._planted():
            return self.inner.generate(requests)

    def stream(self, request: Any) -> Iterator[Any]:
        """Stream with the bug switched on, round by round."""
        with self._planted():
            yield from self.inner.stream(request)

    def _planted(self) -> ExitStack:
        stack = ExitStack()
        for name, replacement in self.mutant.patches.items():
            stack.enter_context(mock.patch(name, replacement))
        return stack


def make_mutant_decoder(mutant: Mutant, models: Any, *, make: Callable[[Any], Any] = make_decoder) -> MutantDecoder:
    """The reference decoder of a pair with one bug."""
    return MutantDecoder(mutant, make(models))
