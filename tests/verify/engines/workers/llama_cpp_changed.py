"""llama-cpp-python with lines of its decoding changed, to see verdicts turn; run it with the environment of llama_cpp.

`--decoder worker:tests/verify/engines/workers/llama_cpp_changed.py --engine change=NAME`, where NAME is `off_by_one` (a planted
bug: a rejected draft stays in the cache) or `processors` (a bug repaired: logits processors see drafts as text).
"""

import inspect
import textwrap
from importlib import import_module
from typing import Any

from verify.engines.llama_cpp.engine import open_engine as open_original

CHANGES = {
    "off_by_one": {"generate": ("self.n_tokens = sample_idx\n", "sample_idx += 1; self.n_tokens = sample_idx\n")},
    "processors": {
        "sample": ("ridx = idx", "self._sample_idx = idx; ridx = idx"),
        "_init_sampler": (
            "logit_processor(self._input_ids, recarray.logit)",
            "logit_processor(self._input_ids[: None if self._sample_idx is None else self._sample_idx + 1], recarray.logit)",
        ),
    },
}


def open_engine(*, options: dict[str, str], **settings: Any) -> Any:
    """The engine with one change."""
    change = options.pop("change")
    library = import_module("llama_cpp.llama")
    for method, (old, new) in CHANGES[change].items():
        source = textwrap.dedent(inspect.getsource(getattr(library.Llama, method)))
        if source.count(old) != 1:
            raise ValueError(f"Llama.{method} is not the one that {change!r} changes; use llama-cpp-python 0.3.36")
        names: dict[str, Any] = {}
        exec(source.replace(old, new), vars(library), names)
        setattr(library.Llama, method, names[method])
    engine = open_original(options=options, **settings)
    engine.name += f", changed: {change}"
    return engine
