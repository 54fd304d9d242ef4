"""The ONNX Runtime worker with a planted bug: rounds with drafts verify against a target whose logits are a quarter larger."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from verify.engines.onnxruntime.engine import open_engine as open_original

SHARPER = 1.25


class ChangedEngine:
    """Asks for 0.8 of the temperature wherever it speculates; the rest is the real worker's."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.name = f"{engine.name}, sharper target (planted)"
        self.capabilities = engine.capabilities
        self.concurrency = engine.concurrency
        self.same_seed_same_output = False

    def answer(
        self, requests: Sequence[Mapping[str, Any]], *, speculative: bool, concurrency: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (index, answer)."""
        asked = [_sharper(request) if speculative else request for request in requests]
        yield from self._engine.answer(asked, speculative=speculative, concurrency=concurrency)


def open_engine(**settings: Any) -> ChangedEngine:
    """Open the real worker."""
    return ChangedEngine(open_original(**settings))


def _sharper(request: Mapping[str, Any]) -> dict[str, Any]:
    sampling = request["sampling"]
    return {**request, "sampling": {**sampling, "temperature": sampling["temperature"] / SHARPER}}
