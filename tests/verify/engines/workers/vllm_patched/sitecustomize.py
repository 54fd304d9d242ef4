"""vLLM 0.32.0 (CPU build) with findings 1, 2 and 3 of reports/engines/FINDINGS-vllm.md patched, to see verdicts turn.

`PYTHONPATH=tests/verify/engines/workers/vllm_patched VENV/bin/python -m vllm...`: Python imports this file first, and the modules
named here get other source text as they are imported. Nothing on disk changes.
"""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType
from typing import Any

CHANGES = {
    # 1: the output was written into a copy, through integers.
    "vllm.utils.cpu_triton_utils": (
        """\
    torch.ops._C.expand_kernel_impl(
        _ensure_int64(output),
        _ensure_int64(input_val),
        _ensure_int64(cu_num_tokens),
        replace_from,
        replace_to,
    )
""",
        """\
    counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
    output.copy_(torch.where(input_val == replace_from, replace_to, input_val).repeat_interleave(counts))
""",
    ),
    # 2: the maximum of no rows.
    "vllm.v1.sample.ops.topk_topp_sampler": (
        "    if p is None and k is None:\n        return logits\n\n    if HAS_TRITON:",
        "    if (p is None and k is None) or not len(logits):\n        return logits\n\n    if HAS_TRITON:",
    ),
    # 3: at the bonus position the drafts of this step count as output.
    "vllm.v1.sample.sampler": (
        """\
        for processor in sampling_metadata.logitsprocs.non_argmax_invariant:
            logits = processor.apply(logits)
""",
        """\
        for processor in sampling_metadata.logitsprocs.non_argmax_invariant:
            if predict_bonus_token and hasattr(processor, "min_toks"):
                drafts = sampling_metadata.spec_token_ids
                for row, (least, output, stops, _) in processor.min_toks.items():
                    if len(output) + len(drafts[row]) < least:
                        logits[row, list(stops)] = -float("inf")
                continue
            logits = processor.apply(logits)
""",
    ),
}


class Changed(SourceFileLoader):
    """Compiles the source with its change; a source that lacks the place is another version."""

    def get_code(self, fullname: str) -> CodeType:
        """Never from a cache."""
        source = self.get_data(self.path).decode()
        old, new = CHANGES[fullname]
        if source.count(old) != 1:
            raise ImportError(f"{fullname} is not the one that is changed here; use vLLM 0.32.0")
        code: CodeType = compile(source.replace(old, new), self.path, "exec", dont_inherit=True)
        return code


class Finder(MetaPathFinder):
    """Finds the modules that are changed, before others do."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """None for all others."""
        spec = PathFinder.find_spec(fullname, path, target) if fullname in CHANGES else None
        if spec is not None and spec.origin is not None:
            spec.loader = Changed(fullname, spec.origin)
        return spec


sys.meta_path.insert(0, Finder())
