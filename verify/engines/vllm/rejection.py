"""vLLM's rejection kernels as rejection steps, for `--verifier verify.engines.vllm.rejection:NAME` in vLLM's environment.

`gpu` is the Triton code of the model runner that is the default today (`vllm/v1/sample/rejection_sampler.py`), `cpu` the C++
code that the CPU build puts in its place, `runner_v2` and `runner_v2_block` the Triton code of the new model runner
(`vllm/v1/worker/gpu/spec_decode/rejection_sampler_utils.py`). Without a GPU, Triton interprets: set TRITON_INTERPRET=1. The
kernels are called with the probabilities themselves, so that no processor and no softmax of the engine stands before them.
Sources: vLLM 0.32.0.
"""

import warnings
from functools import cache
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

SAMPLER = "vllm.v1.sample.rejection_sampler"
SAMPLER_V2 = "vllm.v1.worker.gpu.spec_decode.rejection_sampler_utils"
CPU_KERNELS = "vllm.utils.cpu_triton_utils"
LARGEST_SEED = 2**62


@np.errstate(all="ignore")  # of the interpreter: numpy warns where a GPU does not
def gpu(
    draft_token_ids: Tensor, draft_probs: Tensor | None, target_probs: Tensor, draft_lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """The Triton kernels of the default model runner."""
    _interpret_triton()
    return _sampled(_import(SAMPLER), draft_token_ids, draft_probs, target_probs, draft_lengths)


def cpu(
    draft_token_ids: Tensor, draft_probs: Tensor | None, target_probs: Tensor, draft_lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """The C++ kernels of the CPU build, through the wrappers that it registers."""
    return _sampled(_with_cpu_kernels(), draft_token_ids, draft_probs, target_probs, draft_lengths)


@np.errstate(all="ignore")
def runner_v2(
    draft_token_ids: Tensor, draft_probs: Tensor | None, target_probs: Tensor, draft_lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """The Triton kernels of the new model runner, standard rule."""
    return _sampled_v2(draft_token_ids, draft_probs, target_probs, draft_lengths, block=False)


@np.errstate(all="ignore")
def runner_v2_block(
    draft_token_ids: Tensor, draft_probs: Tensor | None, target_probs: Tensor, draft_lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """The Triton kernels of the new model runner, block verification."""
    return _sampled_v2(draft_token_ids, draft_probs, target_probs, draft_lengths, block=True)


def _sampled(
    sampler: Any, draft_token_ids: Tensor, draft_probs: Tensor | None, target_probs: Tensor, draft_lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """The body of `rejection_sample` of vLLM, from its softmax on; the bonus token comes from vLLM's sampler."""
    width = draft_token_ids.shape[1]
    lengths = draft_lengths.tolist()
    rows, places = _drafted(draft_lengths, width)
    targets = target_probs.float()  # [B, K + 1, V]
    flat_targets = targets[rows, places].contiguous()  # [num_tokens, V]
    flat_drafts = None if draft_probs is None else draft_probs.float()[rows, places].contiguous()
    flat_tokens = draft_token_ids[rows, places].to(torch.int32).contiguous()
    ends = draft_lengths.cumsum(0).to(torch.int32)
    each = torch.arange(len(lengths), device=target_probs.device)
    last = targets[each, draft_lengths.long()]  # [B, V]
    noise = torch.empty_like(last).exponential_()
    bonus = (last / noise).argmax(-1, keepdim=True).to(torch.int32)
    output = torch.full((len(lengths), width + 1), -1, dtype=torch.int32, device=target_probs.device)
    uniforms = sampler.generate_uniform_probs(len(flat_tokens), lengths, {}, target_probs.device)
    if len(flat_tokens):
        recovered = sampler.sample_recovered_tokens(
            width,
            lengths,
            ends,
            flat_tokens,
            flat_drafts,
            flat_targets,
            SimpleNamespace(generators={}),
            target_probs.device,
        )
    else:
        recovered = flat_tokens
    greedy = torch.zeros(len(lengths), dtype=torch.bool, device=target_probs.device)
    sampler._rejection_random_sample(
        output, ends, flat_tokens, flat_drafts, flat_targets, bonus, recovered, uniforms, greedy, width, None
    )
    return output.long(), (output >= 0).sum(-1) - 1


def _sampled_v2(
    draft_token_ids: Tensor, draft_probs: Tensor | None, target_probs: Tensor, draft_lengths: Tensor, *, block: bool
) -> tuple[Tensor, Tensor]:
    sampler = _sampler_v2()
    device = target_probs.device
    num_rows, width = draft_token_ids.shape
    rows, places = _drafted(draft_lengths + 1, width + 1)
    before = torch.zeros(num_rows, 1, dtype=torch.int64, device=device)  # what the first draft follows: not read
    tokens = torch.cat([before, draft_token_ids], dim=1)
    ends = torch.cat([before[:1, 0], (draft_lengths + 1).cumsum(0)]).to(torch.int32)
    sampled, num_sampled = sampler.rejection_sample(
        target_probs.float().log()[rows, places].contiguous(),
        None if draft_probs is None else draft_probs.float().log().contiguous(),
        tokens[rows, places].contiguous(),
        ends,
        places,
        torch.arange(num_rows, dtype=torch.int32, device=device),
        rows.to(torch.int32),
        places.to(torch.int32),
        torch.ones(num_rows, device=device),
        torch.randint(LARGEST_SEED, (num_rows,), device=device),
        width,
        use_block_verification=block,
    )
    emitted = torch.arange(width + 1, device=device)[None, :] < num_sampled[:, None]
    return torch.where(emitted, sampled, -1), num_sampled.long() - 1


def _drafted(lengths: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Row and place of each of the first `lengths[b]` places of row b."""
    places = torch.arange(width, device=lengths.device)
    rows, inside = (places[None, :] < lengths[:, None]).nonzero(as_tuple=True)
    return rows, inside


def _import(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deprecations in vLLM and what it imports
        return import_module(name)


@cache
def _interpret_triton() -> None:
    """Give vLLM the real Triton where its CPU build would do without, before its modules are imported."""
    if torch.cuda.is_available():
        return
    if not _import("triton.knobs").runtime.interpret:
        raise RuntimeError("no GPU, and Triton does not interpret: set TRITON_INTERPRET=1 before Python starts")
    _patch_language_once()
    backends = _import("triton.backends").backends
    backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True))
    if not _import("vllm.triton_utils").HAS_TRITON:
        raise RuntimeError("vLLM has no Triton in this process: name one of its kernels a run, in a new process")


def _patch_language_once() -> None:
    """Spare the interpreter half of its time: it patches the language at each call of a device function, patched or not."""
    interpreter = _import("triton.runtime.interpreter")
    language = _import("triton.language")
    patch = interpreter._patch_lang

    def patch_what_is_left(function: Any) -> Any:
        used = [each for each in function.__globals__.values() if each is language or each is language.core]
        return patch(function) if any(language.core.is_builtin(each.load) for each in used) else None

    interpreter._patch_lang = patch_what_is_left


@cache
def _sampler_v2() -> Any:
    """The new runner's module; Triton's interpreter has no libdevice, from which it takes log1p."""
    _interpret_triton()
    sampler = _import(SAMPLER_V2)
    if not torch.cuda.is_available():
        language = _import("triton.language.core")
        handle = _import("triton.runtime.interpreter").TensorHandle

        def log1p(values: Any) -> Any:
            return language.tensor(handle(np.log1p(values.handle.data), values.handle.dtype), values.type)

        sampler.tldevice = SimpleNamespace(log1p=log1p)
    return sampler


@cache
def _with_cpu_kernels() -> Any:
    """The sampler's module with the CPU build's kernels in it."""
    sampler = _import(SAMPLER)
    kernels = _import(CPU_KERNELS)
    _import("vllm._C")
    replaced = ("rejection_random_sample_kernel", "sample_recovered_tokens_kernel")
    register = _import("vllm.triton_utils.dispatcher").register_kernels
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it looks at every attribute of every module, deprecated ones too
        register({f"{SAMPLER}.{name}": getattr(kernels, f"_{name}_impl") for name in replaced})
    return sampler
