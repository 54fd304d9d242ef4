"""vLLM's Triton kernels with a bug planted in their source, to see verdicts turn; run it with the environment of vllm.

`TRITON_INTERPRET=1 VENV/bin/python -m pytest verify/ --verifier tests.verify.engines.workers.vllm_rejection_changed:NAME`
"""

import sys
import warnings
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from verify.engines.vllm import rejection

CHANGES = {
    # The recovered token is drawn from the target.
    "gpu_not_subtracted": (
        rejection.SAMPLER,
        "prob = tl.maximum(target_prob - draft_prob, 0.0)",
        "prob = target_prob",
    ),
    # Without a draft law, the rejected draft may be drawn again.
    "gpu_not_excluded": (
        rejection.SAMPLER,
        "mask=(vocab_mask & (vocab_offset != draft_token_id))",
        "mask=vocab_mask",
    ),
    "runner_v2_not_subtracted": (
        rejection.SAMPLER_V2,
        "ratio < 1.0,\n            target_log_probs + tldevice.log1p(-ratio),",
        "mask,\n            target_log_probs,",
    ),
    # The residual of block verification forgets how much of the block was left.
    "runner_v2_block_not_scaled": (
        rejection.SAMPLER_V2,
        "target_log_probs += log_p_tau",
        "target_log_probs += 0.0",
    ),
}


def gpu_not_subtracted(*block: Any) -> Any:
    _change("gpu_not_subtracted")
    return rejection.gpu(*block)


def gpu_not_excluded(*block: Any) -> Any:
    _change("gpu_not_excluded")
    return rejection.gpu(*block)


def runner_v2_not_subtracted(*block: Any) -> Any:
    _change("runner_v2_not_subtracted")
    return rejection.runner_v2(*block)


def runner_v2_block_not_scaled(*block: Any) -> Any:
    _change("runner_v2_block_not_scaled")
    return rejection.runner_v2_block(*block)


@cache
def _change(change: str) -> None:
    """Put a changed copy of the module in the place of the installed one."""
    name, old, new = CHANGES[change]
    rejection._interpret_triton()
    installed = Path(rejection._import(name).__file__)
    source = installed.read_text()
    if source.count(old) != 1:
        raise ValueError(f"{name} is not the one that {change!r} changes; use vLLM 0.32.0")
    file = Path(mkdtemp()) / installed.name  # kept: Triton reads the source again
    file.write_text(source.replace(old, new))
    spec = spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deprecations, as in `rejection`
        spec.loader.exec_module(module)
    sys.modules[name] = module
