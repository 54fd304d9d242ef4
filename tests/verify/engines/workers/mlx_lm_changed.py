"""mlx-lm with a line of its speculative decoding changed, to see verdicts turn; run it with the environment of mlx_lm.

`--decoder worker:tests/verify/engines/workers/mlx_lm_changed.py --engine change=NAME`, where NAME is `no_rollback` (a planted
bug: rejected drafts stay in the target's cache) or `prompt_counted` (a bug repaired: the processors see the prompt).
"""

import inspect
from importlib import import_module
from typing import Any

from verify.engines.mlx_lm.engine import open_engine as open_original

CHANGES = {
    "no_rollback": ("trim_prompt_cache(model_cache, num_draft - num_accept)", "pass"),
    "prompt_counted": ("prev_tokens = None\n", "prev_tokens = y[:-1] if logits_processors and y.size > 1 else None\n"),
}


def open_engine(*, options: dict[str, str], **settings: Any) -> Any:
    """The engine with one change."""
    change = options.pop("change")
    old, new = CHANGES[change]
    library = import_module("mlx_lm.generate")
    source = inspect.getsource(library.speculative_generate_step)
    if source.count(old) != 1:
        raise ValueError(f"speculative_generate_step is not the one that {change!r} changes; use mlx-lm 0.32.2")
    exec(source.replace(old, new), vars(library))
    engine = open_original(options=options, **settings)
    engine.name += f", changed: {change}"
    return engine
